"""Writes chunks to the packs of a store, and reads them. A pack is a sequence of zstd frames, one for each chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs
import zstandard

from kimbox.image.saves import index, manifest
from kimbox.image.saves.index import CHUNK_BYTES, MAX_STORED_BYTES, Chunk
from kimbox.image.saves.manifest import PACK_BYTES, Stored
from kimbox.transfer.stores import base
from kimbox.transfer.stores.base import READ_BYTES, Store

#: Level of zstd: 130 MB/s on one processor, and 1 % larger than twice the time gives.
LEVEL = 3

#: Maximum memory of zstd for one frame, in bytes.
WINDOW_BYTES = 8 << 20

#: Bytes between two wanted chunks of a pack that are read with them, in place of another request.
GAP_BYTES = 256 << 10

_ZEROS = bytes(CHUNK_BYTES)


@attrs.frozen(slots=True)
class Known:
    """The place of a chunk in a pack that the store has already."""

    pack: Stored
    offset: int
    stored_bytes: int


@attrs.define
class Packer:
    """Writes the new chunks of a save to packs. `work`: a folder for the pack that is being filled."""

    store: Store
    work: Path
    number: int
    #: Chunks of the former save, by digest.
    known: Mapping[bytes, Known]
    #: The packs of the save; None: not finished.
    packs: list[Stored | None] = attrs.field(factory=list)
    #: Bytes of new packs, whether this call or an interrupted one has uploaded them.
    added_bytes: int = 0
    #: Bytes of new packs that an interrupted call had uploaded.
    found_bytes: int = 0
    _places: dict[bytes, tuple[int, int, int]] = attrs.field(factory=dict)
    _numbers: dict[str, int | None] = attrs.field(factory=dict)
    _file: IO[bytes] | None = None
    _pack: int = 0
    _size: int = 0
    _compressor: zstandard.ZstdCompressor = attrs.field(
        factory=lambda: zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)
    )

    def add(self, number: int, data: bytes) -> Chunk:
        """Returns where a chunk lies. It is written unless the store has it. Raises the errors of the store."""
        digest = index.digest_of(data)
        if data == _ZEROS[: len(data)]:
            return Chunk(number, digest)
        place = self._places.get(digest) or self._reused(digest)
        if place is None:
            place = self._append(self._compressor.compress(data))
        self._places[digest] = place
        return Chunk(number, digest, *place)

    def close_pack(self) -> None:
        """Uploads the pack that is being filled. The next chunk begins another one."""
        self._upload()

    def finish(self) -> tuple[Stored, ...]:
        """Uploads the last pack. Returns all packs of the save."""
        self._upload()
        return tuple(pack for pack in self.packs if pack)

    def _reused(self, digest: bytes) -> tuple[int, int, int] | None:
        """Returns the place of a chunk in an old pack; None if there is none, or if the store has lost the pack."""
        known = self.known.get(digest)
        if known is None:
            return None
        name = known.pack.name
        if name not in self._numbers:
            is_there = self.store.size(name) == known.pack.size_bytes
            self._numbers[name] = len(self.packs) if is_there else None
            if is_there:
                self.packs.append(known.pack)
        number = self._numbers[name]
        return None if number is None else (number, known.offset, known.stored_bytes)

    def _append(self, frame: bytes) -> tuple[int, int, int]:
        if self._file and self._size + len(frame) > PACK_BYTES:
            self._upload()
        if self._file is None:
            self._file = (self.work / "pack").open("wb+")
            self._pack, self._size = len(self.packs), 0
            self.packs.append(None)
        self._file.write(frame)
        place = self._pack, self._size, len(frame)
        self._size += len(frame)
        return place

    def _upload(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        stored, was_there = put_file(self.store, f"packs/{self.number:06}-", self.work / "pack")
        self.packs[self._pack] = stored
        self.added_bytes += stored.size_bytes
        self.found_bytes += stored.size_bytes if was_there else 0


def put_file(store: Store, prefix: str, source: Path) -> tuple[Stored, bool]:
    """Stores a file under its digest, reads it back and compares it. Returns the object, and whether it was there.

    An object of an interrupted save is used if it is whole. Raises KimboxError (`store-failed`) if the store does not
    return what it was given.
    """
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stored = Stored(f"{prefix}{digest}", source.stat().st_size)
    if store.size(stored.name) == stored.size_bytes and is_whole(store, stored):
        return stored, True
    store.write(stored.name, source)
    if not is_whole(store, stored):
        raise base.failed(
            store.url,
            f"writing {stored.name}",
            "the store does not return the bytes that it was given",
            hint="the save was not made, and the former ones are not changed; check the disk or the server",
            object=stored.name,
        )
    return stored, False


def is_whole(store: Store, stored: Stored) -> bool:
    """Reads an object back. Returns whether it has the size and the digest of its name."""
    digest, at = hashlib.sha256(), 0
    while at < stored.size_bytes:
        piece = store.read(stored.name, at, min(READ_BYTES, stored.size_bytes - at))
        if not piece:
            return False
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest() == stored.digest and not store.read(stored.name, at, 1)


def whole(store: Store, stored: Stored) -> bytes:
    """Returns an object whose digest is in its name. Raises KimboxError: `save-damaged`, and those of the store."""
    data = base.all_of(store, stored.name, stored.size_bytes)
    if hashlib.sha256(data).hexdigest() != stored.digest:
        raise manifest.damaged(store.url, stored.name, "it does not have the digest in its name")
    return data


def fetch(
    store: Store, packs: Sequence[Stored], chunks: Iterable[Chunk], size_bytes: int, on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """Yields number and bytes of chunks of a disk of `size_bytes`, each verified, in the order of the packs.

    `on_bytes` gets the number of bytes that were read from the store. Raises KimboxError: `save-damaged`, which names
    the pack and the chunk, and the errors of the store.
    """
    wanted = sorted((chunk for chunk in chunks if not chunk.is_zeros), key=lambda c: (c.pack, c.offset))
    done = 0
    for group in _groups(wanted):
        pack, start = packs[group[0].pack], group[0].offset
        data = store.read(pack.name, start, max(c.offset + c.stored_bytes for c in group) - start)
        done += len(data)
        on_bytes(done)
        for chunk in group:
            frame = data[chunk.offset - start : chunk.offset - start + chunk.stored_bytes]
            yield chunk.number, _unpacked(store, pack, chunk, frame, index.length_of(chunk.number, size_bytes))


def _groups(wanted: list[Chunk]) -> Iterator[list[Chunk]]:
    """Yields neighbours in a pack, which are read at once."""
    group: list[Chunk] = []
    for chunk in wanted:
        if group:
            start, end = group[0].offset, group[-1].offset + group[-1].stored_bytes
            is_near = chunk.pack == group[0].pack and chunk.offset <= end + GAP_BYTES
            if not is_near or chunk.offset + chunk.stored_bytes - start > READ_BYTES - MAX_STORED_BYTES:
                yield group
                group = []
        group.append(chunk)
    if group:
        yield group


def _unpacked(store: Store, pack: Stored, chunk: Chunk, frame: bytes, length: int) -> bytes:
    """Returns the bytes of a chunk. Raises KimboxError (`save-damaged`)."""
    try:
        found = zstandard.get_frame_parameters(frame)
        if found.content_size != length or found.window_size > WINDOW_BYTES:
            raise zstandard.ZstdError("another size than that of a chunk")
        data = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise manifest.damaged(
            store.url, pack.name, f"chunk {chunk.number}: {error}", chunk=str(chunk.number)
        ) from None
    if len(data) != length or index.digest_of(data) != chunk.digest:
        reason = f"chunk {chunk.number} does not have its digest"
        raise manifest.damaged(store.url, pack.name, reason, chunk=str(chunk.number))
    return data
