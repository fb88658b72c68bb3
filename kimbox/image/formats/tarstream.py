"""Reads a tar archive that is untrusted input, plain or compressed, and writes no file.

Python's tarfile reads headers of any length into memory, follows links, and creates the files that a header names. This
module yields the name, size and content of regular files, within limits. It rejects everything else. It reads what
bsdtar(1) and GNU tar write: POSIX, pax, GNU and version 7 archives, and files with holes in all four forms.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs

from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES
from kimbox.image.formats import compressed, tarheader
from kimbox.image.formats.tarheader import BLOCK_BYTES, Range, damaged

#: Maximum size of an extended header (long names, pax records), in bytes. bsdtar of macOS stores attributes of files
#: in pax records.
MAX_EXTRA_BYTES = 1 << 20

#: Maximum number of members. A box has fewer than 20.
MAX_MEMBERS = 1000

#: Maximum size of the padding after the last member, in bytes. tar pads an archive to a whole tape record.
MAX_PADDING_BYTES = 1 << 20

#: Maximum size of all members, holes included, in bytes.
MAX_MEMBER_BYTES = 2 << 40

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

#: Type flags of regular files: POSIX, version 7, contiguous files.
_REGULAR = (b"0", b"\0", b"7")
_FOLDER, _SPARSE, _VOLUME_LABEL = b"5", b"S", b"V"

_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
}  # fmt: skip


def is_archive(file: IO[bytes]) -> bool:
    """Whether a file, which is at its start, is a tar archive, plain or compressed. Raises as `compressed.opened`."""
    block, content = b"", compressed.opened(file)
    while len(block) < BLOCK_BYTES and (piece := content.read(BLOCK_BYTES - len(block))):
        block += piece
    return tarheader.is_header(block)


@attrs.define
class Member:
    """A regular file of an archive. Its content must be read before the next member."""

    name: str
    #: Size of the file, holes included.
    size_bytes: int
    #: Size of the data in the archive.
    stored_bytes: int
    #: Ranges of the data. Between them are holes, which are zeros.
    ranges: tuple[Range, ...]
    _stream: _Stream
    _left: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._left = self.stored_bytes

    @property
    def has_holes(self) -> bool:
        return self.stored_bytes < self.size_bytes

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Yields the content in pieces without its holes: offset in the file, and bytes."""
        for offset, size_bytes in self.ranges:
            end = offset + size_bytes
            while offset < end:
                piece = self._stream.exactly(min(end - offset, CHUNK_BYTES))
                self._left -= len(piece)
                yield offset, piece
                offset += len(piece)

    def pieces(self) -> Iterator[bytes]:
        """Yields the content in pieces, with zeros for its holes."""
        at = 0
        for offset, piece in self.data():
            yield from _zeros(offset - at)
            yield piece
            at = offset + len(piece)
        yield from _zeros(self.size_bytes - at)

    def finish(self) -> None:
        """Skips the content that was not read, and the padding."""
        while self._left:
            self._left -= len(self._stream.exactly(min(self._left, CHUNK_BYTES)))
        self._stream.exactly(-self.stored_bytes % BLOCK_BYTES)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, CHUNK_BYTES))
        count -= CHUNK_BYTES


def members(archive: Path) -> Iterator[Member]:
    """Yields the regular files of an archive, in order, and skips folders.

    Raises ImageError for members of another type, for names outside the archive's folder, for duplicate names, and for
    an archive that is cut off, is damaged, or exceeds a limit.
    """
    with archive.open("rb") as file:
        stream = _Stream(file, compressed.opened(file))
        yield from _members(stream)
        stream.end()


def _members(stream: _Stream) -> Iterator[Member]:
    """Yields the regular files of an unpacked archive."""
    names: set[str] = set()
    total_bytes = 0
    for _ in range(MAX_MEMBERS):
        header = _next_header(stream)
        if header is None:
            return
        name = _check_name(header.name)
        if header.kind == _FOLDER:
            continue
        if header.kind not in (*_REGULAR, _SPARSE):
            raise _unsafe(header.name, _KINDS.get(header.kind, "a member of an unknown type"))
        if name in names:
            raise _unsafe(name, "a duplicate name")
        names.add(name)
        total_bytes += header.size_bytes
        if total_bytes > MAX_MEMBER_BYTES:
            raise _too_large(name, total_bytes)
        member = Member(name, header.size_bytes, header.stored_bytes, header.ranges, stream)
        yield member
        member.finish()
    raise ImageError(
        f"the archive has more than {MAX_MEMBERS} members", code="too-complex", fields={"limit": "members"}
    )


def _too_large(name: str, size_bytes: int) -> ImageError:
    return ImageError(
        f"the archive has files of {size_bytes} bytes; at most {MAX_MEMBER_BYTES} are allowed",
        code="file-too-large",
        fields={"name": name[:200], "limit": "member"},
    )


def _unsafe(name: str, reason: str) -> ImageError:
    """The error for a member that kimbox does not accept. `reason` is a noun."""
    return ImageError(
        f"the archive is not safe to unpack: {name[:200]!r} is {reason}",
        code="unsafe-archive",
        fields={"name": name[:200], "reason": reason},
    )


def _check_name(name: str) -> str:
    """The name without a leading `./`. Raises ImageError for an absolute name, `..` or a control character."""
    plain = posixpath.normpath(name)
    parts = name.split("/")
    if not name or len(name) > 4096 or name.startswith("/") or ".." in parts or "\\" in name or _CONTROL.search(name):
        raise _unsafe(name, "a name that is absolute, has `..`, or has a character that is not allowed")
    return plain


@attrs.frozen
class _Header:
    """The header of a member, with what its extended headers say. The fields are those of Member."""

    kind: bytes
    name: str
    size_bytes: int
    stored_bytes: int
    ranges: tuple[Range, ...]


def _next_header(stream: _Stream) -> _Header | None:
    """The header of the next member, or None at the end."""
    long_name: str | None = None
    pairs: list[tuple[bytes, bytes]] = []
    for _ in range(8):
        block = stream.exactly(BLOCK_BYTES)
        if not block.strip(b"\0"):
            return None
        tarheader.verify_checksum(block)
        kind, size = block[156:157], tarheader.number(block[124:136])
        if kind == b"L":
            long_name = tarheader.text(_extended_header(stream, size).rstrip(b"\0"))
        elif kind == b"x":
            pairs = tarheader.records(_extended_header(stream, size))
        elif kind in (b"g", b"K"):
            _extended_header(stream, size)
        elif kind != _VOLUME_LABEL:
            return _header(stream, block, long_name, pairs)
    raise damaged("it has many extended headers without a file")


def _header(stream: _Stream, block: bytes, long_name: str | None, pairs: list[tuple[bytes, bytes]]) -> _Header:
    """The header of a member from its block, its long name, and its pax records."""
    values = dict(pairs)
    kind, name = block[156:157], tarheader.name_of(block) if long_name is None else long_name
    for key in (b"path", b"GNU.sparse.name"):
        name = tarheader.text(values[key]) if key in values else name
    stored_bytes = tarheader.integer(values[b"size"]) if b"size" in values else tarheader.number(block[124:136])
    if stored_bytes > MAX_MEMBER_BYTES:
        raise _too_large(name, stored_bytes)
    if kind in _REGULAR and name.endswith("/"):
        kind = _FOLDER
    size_bytes, numbers = stored_bytes, None
    if kind == _SPARSE:
        size_bytes, numbers = tarheader.old_sparse_map(block, lambda: stream.exactly(BLOCK_BYTES))
    elif any(key.startswith(b"GNU.sparse.") for key in values):
        size_bytes, map_bytes, numbers = _pax_sparse(stream, pairs, name)
        stored_bytes -= map_bytes
    if size_bytes > MAX_MEMBER_BYTES:
        raise _too_large(name, size_bytes)
    numbers = [0, stored_bytes] if numbers is None else numbers
    return _Header(kind, name, size_bytes, stored_bytes, tarheader.ranges(numbers, size_bytes, stored_bytes))


def _pax_sparse(stream: _Stream, pairs: list[tuple[bytes, bytes]], name: str) -> tuple[int, int, list[int]]:
    """Of a file with holes in a pax archive: its size, the size of the map before its data, the numbers of its ranges.

    Raises ImageError for a version of the format that kimbox does not know.
    """
    values = dict(pairs)
    version = values.get(b"GNU.sparse.major", b"0"), values.get(b"GNU.sparse.minor", b"0")
    if version == (b"1", b"0"):
        map_bytes, numbers = tarheader.sparse_map_in_data(lambda: stream.exactly(BLOCK_BYTES))
        return tarheader.integer(values.get(b"GNU.sparse.realsize", b"")), map_bytes, numbers
    found = tarheader.pax_sparse_map(pairs)
    if found is None or version[0] != b"0":
        raise _unsafe(name, "a file with holes in an unknown form")
    return tarheader.integer(values.get(b"GNU.sparse.size", b"")), 0, found


def _extended_header(stream: _Stream, size: int) -> bytes:
    """The content of an extended header of `size` bytes."""
    if size > MAX_EXTRA_BYTES:
        raise ImageError(
            f"the archive has an extended header of {size} bytes; at most {MAX_EXTRA_BYTES} are allowed",
            code="file-too-large",
            fields={"limit": "header"},
        )
    data = stream.exactly(size)
    stream.exactly(-size % BLOCK_BYTES)
    return data


@attrs.define
class _Stream:
    """The unpacked bytes of an archive, and the archive file."""

    file: IO[bytes]
    content: compressed.Content
    #: Number of unpacked bytes that were read.
    read_bytes: int = 0

    def exactly(self, count: int) -> bytes:
        """Returns `count` bytes. Raises ImageError if there are fewer, or if the archive is a decompression bomb."""
        data = b""
        while len(data) < count:
            piece = self.content.read(count - len(data))
            if not piece:
                raise damaged("it is cut off")
            data += piece
        self.read_bytes += count
        compressed.check_ratio(self.read_bytes, self.file.tell())
        return data

    def end(self) -> None:
        """Reads the padding after the last member. The decompressor verifies its checksums at the end of the data."""
        left_bytes = MAX_PADDING_BYTES
        while piece := self.content.read(left_bytes):
            left_bytes -= len(piece)
            if not left_bytes:
                raise damaged("it has data after its end")
