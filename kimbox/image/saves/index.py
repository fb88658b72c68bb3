"""The index of a save: which chunk of a disk lies where in which pack. Binary, because a disk has many chunks.

Header: MAGIC, number of entries (u32). Entry, ascending by chunk: number of the chunk (u64), sha256 of its 1 MiB (32
bytes), number of its pack in the manifest (u32), offset in the pack (u32), size there (u32). Numbers are little-endian.
A chunk of zeros has the pack ZEROS, and no place. The last chunk of a disk may be shorter than the others.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

import attrs

#: Size of a chunk of a disk, in bytes.
CHUNK_BYTES = 1 << 20

#: Maximum number of chunks in a save: 1 TiB of changes.
MAX_CHUNKS = 1 << 20

#: Maximum size of a chunk in a pack: zstd adds at most 0.4 % and a header to data that cannot be compressed.
MAX_STORED_BYTES = CHUNK_BYTES + (CHUNK_BYTES >> 7) + 512

#: Number of the pack of a chunk of zeros.
ZEROS = 0xFFFFFFFF

MAGIC = b"kimbox-index-1\n\0"

_HEADER = struct.Struct("<16sI")
_ENTRY = struct.Struct("<Q32sIII")

#: Maximum size of an index, in bytes.
MAX_INDEX_BYTES = _HEADER.size + MAX_CHUNKS * _ENTRY.size


@attrs.frozen(slots=True)
class Chunk:
    """A chunk of a disk, by its number, and its place in a pack."""

    number: int
    digest: bytes
    pack: int = ZEROS
    offset: int = 0
    stored_bytes: int = 0

    @property
    def is_zeros(self) -> bool:
        return self.pack == ZEROS


def digest_of(data: bytes) -> bytes:
    """Returns the digest of a chunk."""
    return hashlib.sha256(data).digest()


def length_of(number: int, size_bytes: int) -> int:
    """Returns the length in bytes of a chunk of a disk of `size_bytes`."""
    return min(CHUNK_BYTES, size_bytes - number * CHUNK_BYTES)


def pack_index(chunks: Iterable[Chunk]) -> bytes:
    """Returns chunks, in ascending order, as an index."""
    entries = [_ENTRY.pack(c.number, c.digest, c.pack, c.offset, c.stored_bytes) for c in chunks]
    return _HEADER.pack(MAGIC, len(entries)) + b"".join(entries)


def parse_index(data: bytes, size_bytes: int, pack_sizes: Sequence[int]) -> list[Chunk]:
    """Parses an index from a store. `pack_sizes`: size of each pack of the manifest, in bytes.

    Raises ValueError for any number that is not possible.
    """
    if len(data) < _HEADER.size or len(data) > MAX_INDEX_BYTES:
        raise ValueError("the index has an impossible size")
    magic, count = _HEADER.unpack_from(data)
    if magic != MAGIC or len(data) != _HEADER.size + count * _ENTRY.size:
        raise ValueError("it is not an index")
    chunks, last, total = [], -1, -(-size_bytes // CHUNK_BYTES)
    for entry in _ENTRY.iter_unpack(memoryview(data)[_HEADER.size :]):
        chunk = Chunk(*entry)
        if not last < chunk.number < total:
            raise ValueError("the numbers of its chunks do not ascend, or are beyond the end of the disk")
        last = chunk.number
        if chunk.is_zeros:
            if chunk.offset or chunk.stored_bytes:
                raise ValueError("a chunk of zeros has a place")
        elif (
            chunk.pack >= len(pack_sizes)
            or not 0 < chunk.stored_bytes <= MAX_STORED_BYTES
            or chunk.offset + chunk.stored_bytes > pack_sizes[chunk.pack]
        ):
            raise ValueError(f"chunk {chunk.number} is not within a pack")
        chunks.append(chunk)
    return chunks
