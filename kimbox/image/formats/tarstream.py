"""Reads a tar archive, plain or in gzip or xz, that a stranger made: member by member, nothing ever written by name.

Python's own reader takes headers of any length into memory, follows links and makes what a header says. This one gives
names, kinds and bytes, each bounded; whoever reads decides what becomes of them. Format: tar(5) of libarchive, POSIX
pax(1), the long names and sizes of GNU tar.
"""

from __future__ import annotations

import gzip
import posixpath
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs

from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES
from kimbox.image.formats import xz

BLOCK_BYTES = 512

#: Headers that describe the next member (long names and the like) are no longer.
MAX_EXTRA_BYTES = 64 << 10

#: A box has a handful of members.
MAX_MEMBERS = 1000

#: Archives are padded to a multiple of what a tape took.
MAX_PADDING_BYTES = 1 << 20

#: No member is larger.
MAX_MEMBER_BYTES = 2 << 40

#: Once it is this long, an archive that unpacks to so many times its size is a bomb. Disks in boxes are compressed
#: already, or hold more than zeros.
RATIO_FROM_BYTES = 256 << 20
MAX_RATIO = 200

Content = IO[bytes] | gzip.GzipFile | xz.Reader

_UNPACK = "a disk that is compressed with gzip or xz must be unpacked first"
_GZIP = b"\x1f\x8b"
_PAX = re.compile(rb"(\d{1,9}) ([^=\n]{1,100})=")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DIGITS = {8: re.compile(rb"[0-7]{1,12}"), 10: re.compile(rb"[0-9]{1,18}")}

_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a file with holes",
}  # fmt: skip


def is_archive(head: bytes) -> bool:
    """Whether a file that begins so is a tar archive, or compressed as one may be."""
    return head.startswith((_GZIP, xz.MAGIC)) or head.startswith(b"ustar", 257)


@attrs.define
class Member:
    """A regular file of the archive. Its bytes must be taken before the next one is asked for."""

    name: str
    size_bytes: int
    _stream: _Stream
    _left: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._left = self.size_bytes

    def pieces(self) -> Iterator[bytes]:
        """The content, piece by piece."""
        while self._left:
            piece = self._stream.exactly(min(self._left, CHUNK_BYTES))
            self._left -= len(piece)
            yield piece

    def finish(self) -> None:
        """Passes over what was not taken, and the padding."""
        for _ in self.pieces():
            pass
        self._stream.exactly(-self.size_bytes % BLOCK_BYTES)


def members(archive: Path) -> Iterator[Member]:
    """The regular files of an archive, in its order; folders are passed over.

    Raises ImageError for anything else, for names that lead elsewhere or are there twice, and for an archive that is
    cut off, damaged, or unpacks to far more than it is.
    """
    with archive.open("rb") as file:
        head = file.read(len(xz.MAGIC))
        file.seek(0)
        stream = _Stream(file, _content(file, head))
        yield from _members(stream)
        stream.end()


def _content(file: IO[bytes], head: bytes) -> Content:
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    return xz.Reader(file) if head == xz.MAGIC else file


def _members(stream: _Stream) -> Iterator[Member]:
    seen: set[str] = set()
    for _ in range(MAX_MEMBERS):
        found = _next(stream)
        if found is None:
            return
        kind, name, size = found
        if kind == b"5":
            _check_name(name)
            continue
        if kind not in (b"0", b"\0"):
            raise ImageError(f"the archive holds {_KINDS.get(kind, 'something that is no file')}: {name!r}")
        name = _check_name(name)
        if name in seen:
            raise ImageError(f"the archive holds {name!r} twice")
        seen.add(name)
        member = Member(name, size, stream)
        yield member
        member.finish()
    raise ImageError(f"the archive has more than {MAX_MEMBERS} members")


def _check_name(name: str) -> str:
    """The name without a leading `./`. Raises ImageError if it leads out of the folder it is unpacked in."""
    plain = posixpath.normpath(name)
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\\" in name or _CONTROL.search(name):
        raise ImageError(f"the archive holds a name that leads elsewhere: {name[:200]!r}")
    return plain


def _next(stream: _Stream) -> tuple[bytes, str, int] | None:
    """Kind, name and size of the next member; None at the end."""
    long_name: str | None = None
    long_size: int | None = None
    for _ in range(8):
        header = stream.exactly(BLOCK_BYTES)
        if not header.strip(b"\0"):
            return None
        _check_sum(header)
        kind, size = header[156:157], _number(header[124:136])
        if kind in (b"x", b"g", b"L"):
            extra = _extra(stream, size)
            if kind == b"L":
                long_name = _text(extra.rstrip(b"\0"))
            elif kind == b"x":
                values = _pax(extra)
                if any(key.startswith(b"GNU.sparse") for key in values):
                    raise ImageError("the archive holds a file with holes")
                long_name = _text(values[b"path"]) if b"path" in values else long_name
                long_size = _whole(values[b"size"]) if b"size" in values else long_size
            continue
        name = _text(header[:100].split(b"\0")[0])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500].split(bytes(1))[0])}/{name}"
        name = name if long_name is None else long_name
        size = size if long_size is None else long_size
        if size > MAX_MEMBER_BYTES:
            raise ImageError(f"the archive holds a file that claims to have {size} bytes")
        return b"5" if kind in (b"0", b"\0") and name.endswith("/") else kind, name, size
    raise ImageError("the archive is damaged: nothing but headers")


def _extra(stream: _Stream, size: int) -> bytes:
    if size > MAX_EXTRA_BYTES:
        raise ImageError("the archive is damaged: a header without end")
    data = stream.exactly(size)
    stream.exactly(-size % BLOCK_BYTES)
    return data


def _pax(data: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header."""
    values: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        match = _PAX.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ImageError("the archive is damaged: an extended header that cannot be read")
        values[match[2]] = data[match.end() : end - 1]
        at = end
    return values


def _check_sum(header: bytes) -> None:
    told = _number(header[148:156])
    if told != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise ImageError("the archive is damaged, or is no tar archive", hint=_UNPACK)


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or, for large ones, binary after a first byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    return _whole(field.strip(b" \0") or b"0", 8)


def _whole(digits: bytes, base: int = 10) -> int:
    if not _DIGITS[base].fullmatch(digits):
        raise ImageError("the archive is damaged, or is no tar archive", hint=_UNPACK)
    return int(digits, base)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ImageError(f"the archive holds a name that is no text: {data[:100]!r}") from None


@attrs.define
class _Stream:
    """What is unpacked, and the file that it comes from."""

    file: IO[bytes]
    content: Content
    taken: int = 0

    def exactly(self, count: int) -> bytes:
        """So many bytes. Raises ImageError if there are fewer, or too many for the size of the file."""
        data = b""
        while len(data) < count:
            piece = self.some(count - len(data))
            if not piece:
                raise ImageError("the archive is cut off", hint="get it again")
            data += piece
        self.taken += count
        if self.taken > RATIO_FROM_BYTES and self.taken > MAX_RATIO * self.file.tell():
            raise ImageError("the archive is a bomb: it unpacks to far more than a disk takes")
        return data

    def some(self, count: int) -> bytes:
        """At most so many bytes; nothing at the end. Raises ImageError if it cannot be unpacked further."""
        try:
            return self.content.read(count)
        except (gzip.BadGzipFile, zlib.error, EOFError):
            raise ImageError("this gzip archive is cut off or damaged", hint="get it again") from None

    def end(self) -> None:
        """Reads the padding after the last member, and with it the checksum of all that came before."""
        left = MAX_PADDING_BYTES
        while piece := self.some(left):
            left -= len(piece)
            if not left:
                raise ImageError("the archive is damaged: something follows its end")
