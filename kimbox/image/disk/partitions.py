"""Reads the partition table of a disk, MBR or GPT. Pure: bytes come from a function.

Format: UEFI specification, chapter 5. `sectors` writes the MBR of kimbox's images.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import faults
from kimbox.image.disk.ext4.inodes import Read
from kimbox.spec.layout import SECTOR_BYTES

#: Signature at the end of the MBR, and the offset of its four entries of 16 bytes.
SIGNATURE = b"\x55\xaa"
TABLE_BYTES = 446

#: MBR type of the partition that covers a disk with a GPT, and the magic number of the GPT, in sector 1.
TYPE_GPT = 0xEE
GPT_MAGIC = b"EFI PART"

#: Maximum number of entries of a GPT.
MAX_GPT_ENTRIES = 512


@attrs.frozen(order=True)
class Entry:
    """A partition: first byte and end on the disk, number in the table from 1, MBR type (None in a GPT)."""

    start_bytes: int
    end_bytes: int
    number: int
    type: int | None = None


def entries(read: Read, size_bytes: int) -> list[Entry]:
    """Returns the partitions of a disk of `size_bytes`, in the order of the disk; none if it has no partition table.

    Raises ImageError for a partition that is not within the disk, and for partitions that overlap.
    """
    mbr = read(0, SECTOR_BYTES)
    if mbr[510:] != SIGNATURE:
        return []
    read = faults.exact(read, faults.PARTITION_TABLE)
    types = [mbr[TABLE_BYTES + 16 * index + 4] for index in range(4)]
    rows = _gpt(read) if TYPE_GPT in types else _mbr(mbr, types)
    partitions = []
    for number, first, end, kind in rows:
        if not 0 < first < end <= size_bytes // SECTOR_BYTES:
            raise _damaged("beyond-disk", f"partition {number} is not within the disk", partition=number)
        partitions.append(Entry(first * SECTOR_BYTES, end * SECTOR_BYTES, number, kind))
    partitions.sort()
    for left, right in pairwise(partitions):
        if left.end_bytes > right.start_bytes:
            raise _damaged("partitions-overlap", f"partitions {left.number} and {right.number} overlap")
    return partitions


def _damaged(fault: str, reason: str, **details: int) -> ImageError:
    return faults.damaged(fault, reason, part=faults.PARTITION_TABLE, **details)


def _mbr(mbr: bytes, types: list[int]) -> Iterator[tuple[int, int, int, int | None]]:
    """Yields number, first sector, end sector and type of each partition of an MBR."""
    for index, kind in enumerate(types):
        first, count = struct.unpack_from("<II", mbr, TABLE_BYTES + 16 * index + 8)
        if kind:
            yield index + 1, first, first + count, kind


def _gpt(read: Read) -> Iterator[tuple[int, int, int, int | None]]:
    """Yields number, first sector and end sector of each partition of a GPT, and None for the type."""
    header = read(SECTOR_BYTES, SECTOR_BYTES)
    place, count, size = struct.unpack_from("<QII", header, 72)
    if not header.startswith(GPT_MAGIC) or count > MAX_GPT_ENTRIES or not 128 <= size <= 4096 or place > 1 << 40:
        raise _damaged("bad-gpt", "invalid header of the GPT")

    table = read(place * SECTOR_BYTES, count * size)
    for index in range(count):
        entry = table[index * size : (index + 1) * size]
        if any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            yield index + 1, first, last + 1, None
