"""Reads a tar archive that is untrusted input, plain or compressed with gzip or xz, and writes no file.

Python's tarfile reads headers of any length into memory, follows links, and creates the files that a header names. This
module yields the name, size and content of regular files, within limits. It rejects everything else. Format: tar(5) of
libarchive, POSIX pax(1), long names and large sizes of GNU tar.
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

#: Size of a tar block, in bytes.
BLOCK_BYTES = 512

#: Maximum size of an extended header (long names, pax records), in bytes.
MAX_EXTRA_BYTES = 64 << 10

#: Maximum number of members. A box has fewer than 20.
MAX_MEMBERS = 1000

#: Maximum size of the padding after the last member, in bytes. tar pads an archive to a whole tape record.
MAX_PADDING_BYTES = 1 << 20

#: Maximum size of a member, in bytes.
MAX_MEMBER_BYTES = 2 << 40

#: Maximum ratio of unpacked and packed size, for archives with more than RATIO_FROM_BYTES of unpacked data. It rejects
#: decompression bombs. The disks of real boxes stay below it.
RATIO_FROM_BYTES = 256 << 20
MAX_RATIO = 200

Content = IO[bytes] | gzip.GzipFile | xz.Reader

#: Hint for a file that is compressed, but is not a tar archive.
_UNPACK = "a disk that is compressed with gzip or xz must be unpacked first, with `gunzip` or `unxz`"
_DOWNLOAD = "download the file again"
_GZIP = b"\x1f\x8b"
_PAX = re.compile(rb"(\d{1,9}) ([^=\n]{1,100})=")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DIGITS = {8: re.compile(rb"[0-7]{1,12}"), 10: re.compile(rb"[0-9]{1,18}")}

_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a file with holes",
}  # fmt: skip


def is_archive(head: bytes) -> bool:
    """Whether a file with these first bytes may be a tar archive: it is one, or is compressed with gzip or xz."""
    return head.startswith((_GZIP, xz.MAGIC)) or head.startswith(b"ustar", 257)


@attrs.define
class Member:
    """A regular file of an archive. Its content must be read before the next member."""

    name: str
    size_bytes: int
    _stream: _Stream
    _left: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._left = self.size_bytes

    def pieces(self) -> Iterator[bytes]:
        """Yields the content in pieces."""
        while self._left:
            piece = self._stream.exactly(min(self._left, CHUNK_BYTES))
            self._left -= len(piece)
            yield piece

    def finish(self) -> None:
        """Skips the content that was not read, and the padding."""
        for _ in self.pieces():
            pass
        self._stream.exactly(-self.size_bytes % BLOCK_BYTES)


def members(archive: Path) -> Iterator[Member]:
    """Yields the regular files of an archive, in order, and skips folders.

    Raises ImageError for members of another type, for names outside the archive's folder, for duplicate names, and for
    an archive that is cut off, is damaged, or exceeds a limit.
    """
    with archive.open("rb") as file:
        head = file.read(len(xz.MAGIC))
        file.seek(0)
        stream = _Stream(file, _content(file, head))
        yield from _members(stream)
        stream.end()


def _content(file: IO[bytes], head: bytes) -> Content:
    """A reader of the unpacked bytes of a file that begins with `head`."""
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    return xz.Reader(file) if head == xz.MAGIC else file


def _members(stream: _Stream) -> Iterator[Member]:
    """Yields the regular files of an unpacked archive."""
    names: set[str] = set()
    for _ in range(MAX_MEMBERS):
        header = _next_header(stream)
        if header is None:
            return
        kind, name, size_bytes = header
        if kind == b"5":
            _check_name(name)
            continue
        if kind not in (b"0", b"\0"):
            raise _unsafe(name, _KINDS.get(kind, "a member of an unknown type"))
        name = _check_name(name)
        if name in names:
            raise _unsafe(name, "a duplicate name")
        names.add(name)
        member = Member(name, size_bytes, stream)
        yield member
        member.finish()
    raise ImageError(
        f"the archive has more than {MAX_MEMBERS} members", code="too-complex", fields={"limit": "members"}
    )


def _unsafe(name: str, reason: str) -> ImageError:
    """The error for a member that kimbox does not accept. `reason` is a noun."""
    return ImageError(
        f"the archive is not safe to unpack: {name[:200]!r} is {reason}",
        code="unsafe-archive",
        fields={"name": name[:200], "reason": reason},
    )


def _damaged(reason: str) -> ImageError:
    """The error for an archive that cannot be read."""
    return ImageError(f"the archive is damaged: {reason}", code="archive-damaged", hint=_DOWNLOAD)


def _not_tar() -> ImageError:
    """The error for data that is not a tar header."""
    return ImageError("the archive is damaged, or is not a tar archive", code="archive-damaged", hint=_UNPACK)


def _check_name(name: str) -> str:
    """The name without a leading `./`. Raises ImageError for an absolute name, `..` or a control character."""
    plain = posixpath.normpath(name)
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\\" in name or _CONTROL.search(name):
        raise _unsafe(name, "a name that is absolute, has `..`, or has a character that is not allowed")
    return plain


def _next_header(stream: _Stream) -> tuple[bytes, str, int] | None:
    """Type, name and size in bytes of the next member, or None at the end."""
    long_name: str | None = None
    long_size: int | None = None
    for _ in range(8):
        header = stream.exactly(BLOCK_BYTES)
        if not header.strip(b"\0"):
            return None
        _verify_checksum(header)
        kind, size = header[156:157], _number(header[124:136])
        if kind in (b"x", b"g", b"L"):
            data = _extended_header(stream, size)
            if kind == b"L":
                long_name = _text(data.rstrip(b"\0"))
            elif kind == b"x":
                values = _pax_records(data)
                if any(key.startswith(b"GNU.sparse") for key in values):
                    raise _unsafe(_text(values.get(b"path", b"")), _KINDS[b"S"])
                long_name = _text(values[b"path"]) if b"path" in values else long_name
                long_size = _integer(values[b"size"]) if b"size" in values else long_size
            continue
        name = _text(header[:100].split(b"\0")[0])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500].split(bytes(1))[0])}/{name}"
        name = name if long_name is None else long_name
        size = size if long_size is None else long_size
        if size > MAX_MEMBER_BYTES:
            raise ImageError(
                f"the archive has a file of {size} bytes; at most {MAX_MEMBER_BYTES} are allowed",
                code="file-too-large",
                fields={"name": name, "limit": "member"},
            )
        return b"5" if kind in (b"0", b"\0") and name.endswith("/") else kind, name, size
    raise _damaged("it has many extended headers without a file")


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


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header."""
    values: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        match = _PAX.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _damaged("an extended header is not valid")
        values[match[2]] = data[match.end() : end - 1]
        at = end
    return values


def _verify_checksum(header: bytes) -> None:
    """Raises ImageError if the checksum of a header is wrong. Its own field counts as spaces."""
    if _number(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise _not_tar()


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or binary after a first byte of 0x80 for large numbers (GNU tar)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    return _integer(field.strip(b" \0") or b"0", 8)


def _integer(digits: bytes, base: int = 10) -> int:
    """The value of digits. Raises ImageError for other characters and too many digits."""
    if not _DIGITS[base].fullmatch(digits):
        raise _not_tar()
    return int(digits, base)


def _text(data: bytes) -> str:
    """A name as text. Raises ImageError if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ImageError(
            f"the archive has a name that is not text in UTF-8: {data[:100]!r}",
            code="unsafe-archive",
            fields={"name": repr(data[:100]), "reason": "a name that is not UTF-8"},
        ) from None


@attrs.define
class _Stream:
    """The unpacked bytes of an archive, and the archive file."""

    file: IO[bytes]
    content: Content
    #: Number of unpacked bytes that were read.
    read_bytes: int = 0

    def exactly(self, count: int) -> bytes:
        """Returns `count` bytes. Raises ImageError if there are fewer, or if the archive is a decompression bomb."""
        data = b""
        while len(data) < count:
            piece = self.at_most(count - len(data))
            if not piece:
                raise _damaged("it is cut off")
            data += piece
        self.read_bytes += count
        if self.read_bytes > RATIO_FROM_BYTES and self.read_bytes > MAX_RATIO * self.file.tell():
            raise ImageError(
                f"the archive is a decompression bomb: it unpacks to more than {MAX_RATIO} times its size",
                code="file-too-large",
                fields={"limit": "ratio"},
            )
        return data

    def at_most(self, count: int) -> bytes:
        """Returns at most `count` bytes, or no bytes at the end. Raises ImageError if the data cannot be unpacked."""
        try:
            return self.content.read(count)
        except (gzip.BadGzipFile, zlib.error, EOFError):
            raise ImageError("the gzip archive is cut off or damaged", code="archive-damaged", hint=_DOWNLOAD) from None

    def end(self) -> None:
        """Reads the padding after the last member. The decompressor verifies its checksums at the end of the data."""
        left_bytes = MAX_PADDING_BYTES
        while piece := self.at_most(left_bytes):
            left_bytes -= len(piece)
            if not left_bytes:
                raise _damaged("it has data after its end")
