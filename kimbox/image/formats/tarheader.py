"""Reads the parts of a tar header that is untrusted input: numbers, names, checksums, records, and maps of holes.

Format: tar(5) of libarchive, POSIX pax(1), and the appendix "Storing Sparse Files" of GNU tar's manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kimbox.errors import ImageError
from kimbox.image.formats.compressed import DOWNLOAD

#: Size of a tar block, in bytes.
BLOCK_BYTES = 512

#: Maximum number of ranges of data in a file with holes.
MAX_RANGES = 1 << 18

#: Offset and size of a range of data in a file with holes, in bytes.
Range = tuple[int, int]

_PAX = re.compile(rb"(\d{1,9}) ([^=\n]{1,500})=")
_DIGITS = {8: re.compile(rb"[0-7]{1,12}"), 10: re.compile(rb"[0-9]{1,18}")}

#: GNU tar, struct oldgnu_header and sparse_header: offset of the first range, size of a range, ranges in a header and
#: in a following block, offsets of the flag "more blocks follow", and of the size of the file with its holes.
_OLD_AT, _OLD_BYTES, _OLD_RANGES, _OLD_MORE, _OLD_SIZE = 386, 24, 4, 482, 483
_NEXT_RANGES, _NEXT_MORE = 21, 504


def damaged(reason: str) -> ImageError:
    """The error for an archive that cannot be read."""
    return ImageError(f"the archive is damaged: {reason}", code="archive-damaged", hint=DOWNLOAD)


def _not_tar() -> ImageError:
    """The error for data that is not a tar header."""
    return ImageError("the archive is damaged, or is not a tar archive", code="archive-damaged", hint=DOWNLOAD)


def is_header(block: bytes) -> bool:
    """Whether a block is the header of a member. Archives of tar's version 7 have no magic number."""
    try:
        verify_checksum(block)
    except (ImageError, IndexError):
        return False
    return len(block) >= BLOCK_BYTES and block[0] != 0


def verify_checksum(header: bytes) -> None:
    """Raises ImageError if the checksum of a header is wrong. Its own field counts as spaces."""
    header = header[:BLOCK_BYTES]
    if number(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise _not_tar()


def number(field: bytes) -> int:
    """A number in a header: octal digits, or binary after a first byte of 0x80 for large numbers (GNU tar)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    return integer(field.strip(b" \0") or b"0", 8)


def integer(digits: bytes, base: int = 10) -> int:
    """The value of digits. Raises ImageError for other characters and too many digits."""
    if not _DIGITS[base].fullmatch(digits):
        raise _not_tar()
    return int(digits, base)


def text(data: bytes) -> str:
    """A name as text. Raises ImageError if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ImageError(
            f"the archive has a name that is not text in UTF-8: {data[:100]!r}",
            code="unsafe-archive",
            fields={"name": repr(data[:100]), "reason": "a name that is not UTF-8"},
        ) from None


def name_of(header: bytes) -> str:
    """The name in a header, with the prefix that only POSIX headers have."""
    name = text(header[:100].split(b"\0")[0])
    if header[257:263] == b"ustar\0" and header[345]:
        return f"{text(header[345:500].split(bytes(1))[0])}/{name}"
    return name


def records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header: key and value."""
    pairs: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        match = _PAX.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise damaged("an extended header is not valid")
        pairs.append((match[2], data[match.end() : end - 1]))
        at = end
    return pairs


def old_sparse_map(header: bytes, next_block: Callable[[], bytes]) -> tuple[int, list[int]]:
    """The size of a file with holes, and the numbers of its ranges, from a header of GNU tar's own format."""
    numbers, has_more = _old_ranges(header, _OLD_AT, _OLD_RANGES), header[_OLD_MORE]
    while has_more:
        block = next_block()
        numbers += _old_ranges(block, 0, _NEXT_RANGES)
        has_more = block[_NEXT_MORE]
        _check_count(len(numbers) // 2)
    return number(header[_OLD_SIZE : _OLD_SIZE + 12]), numbers


def _old_ranges(block: bytes, at: int, count: int) -> list[int]:
    """The numbers of up to `count` ranges in a block, from the offset `at`. An empty field ends them."""
    numbers: list[int] = []
    for start in range(at, at + count * _OLD_BYTES, _OLD_BYTES):
        if not block[start + 12]:
            break
        numbers += [number(block[start : start + 12]), number(block[start + 12 : start + 24])]
    return numbers


def pax_sparse_map(pairs: Sequence[tuple[bytes, bytes]]) -> list[int] | None:
    """The numbers of the ranges in the records of the versions 0.0 and 0.1; None if the records have no ranges."""
    values = dict(pairs)
    if b"GNU.sparse.map" in values:
        digits = values[b"GNU.sparse.map"].split(b",")
    else:
        digits = [value for key, value in pairs if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    _check_count(len(digits) // 2)
    return [integer(item) for item in digits] if b"GNU.sparse.numblocks" in values else None


def sparse_map_in_data(next_block: Callable[[], bytes]) -> tuple[int, list[int]]:
    """The numbers of the ranges before the data of a file of the version 1.0, and the size of this map in bytes.

    The map is a decimal number of ranges, then offset and size of each range, each on a line, padded to a block.
    """
    data = bytearray(next_block())
    count = integer(bytes(data[: data.find(b"\n")]))
    _check_count(count)
    lines = data.count(b"\n")
    while lines < 1 + 2 * count:
        block = next_block()
        lines += block.count(b"\n")
        data += block
    return len(data), [integer(line) for line in bytes(data).split(b"\n")[1 : 1 + 2 * count]]


def _check_count(count: int) -> None:
    if count > MAX_RANGES:
        raise ImageError(
            f"a file of the archive has more than {MAX_RANGES} holes",
            code="too-complex",
            hint="pack the archive again without the option -S (--sparse) of tar",
            fields={"limit": "holes"},
        )


def ranges(numbers: Sequence[int], size_bytes: int, stored_bytes: int) -> tuple[Range, ...]:
    """The ranges of data of a file, in order, without empty ranges.

    `numbers`: offset and size of each range. `size_bytes`: size of the file; `stored_bytes`: size of all data.
    Raises ImageError if ranges overlap, are not in order, or do not fit.
    """
    result: list[Range] = []
    end = total_bytes = 0
    for offset, count in zip(numbers[::2], numbers[1::2], strict=False):
        if offset < end or offset + count > size_bytes:
            raise damaged("the map of the holes in a file is not valid")
        end = offset + count
        total_bytes += count
        if count:
            result.append((offset, count))
    if len(numbers) % 2 or total_bytes != stored_bytes:
        raise damaged("the map of the holes in a file is not valid")
    return tuple(result)
