"""Detects disks that are shorter than their own header says, such as a download that was cut off.

QEMU opens such a disk, and the guest fails later. Formats: docs/interop/qcow2.txt in QEMU's sources, VMware's "Virtual
Disk Format 5.0", UEFI specification (MBR and GPT).
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import IO

from kimbox.errors import ImageError
from kimbox.files import size_words

#: QEMU's limits for a qcow2: sizes of its tables, in bytes, and of a cluster, as power of two.
_MAX_L1_BYTES, _MAX_REFCOUNT_TABLE_BYTES, _CLUSTER_BITS = 32 << 20, 8 << 20, range(9, 22)

#: Incompatible feature of a qcow2: its reference counts may be old.
_DIRTY = 1

#: MBR: offset of the table, size and number of its entries, types of an unused entry and of that for a GPT. A count of
#: sectors of 32 ones means "up to the end".
_TABLE_BYTES, _ENTRY_BYTES, _ENTRIES, _UNUSED, _GPT_TYPE, _TO_THE_END = 446, 16, 4, 0, 0xEE, 0xFFFFFFFF

#: MBR: the status of a partition is "not active" or "active".
_STATUSES = {0, 0x80}

_SECTOR_BYTES = 512

#: VMDK: the place of a directory that the footer names, distance of the footer from the end, in bytes; flag of
#: compressed grains, and size of the marker before one, in bytes; limits of QEMU for tables.
_IN_FOOTER, _FOOTER_BYTES, _COMPRESSED, _MARKER_BYTES = (1 << 64) - 1, 1024, 1 << 16, 12
_MAX_TABLES, _MAX_TABLE_ENTRIES = 1 << 20, 512

_GPT_MAGIC = b"EFI PART"


def check_raw(file: IO[bytes]) -> None:
    """Raises ImageError (`disk-damaged`) if a partition of a raw disk ends after the file."""
    size_bytes = file.seek(0, 2)
    need_bytes = 0
    for sector_bytes in (512, 4096):
        header = _at(file, sector_bytes, 40)
        if header.startswith(_GPT_MAGIC) and len(header) == 40:
            need_bytes = max(need_bytes, (struct.unpack_from("<Q", header, 32)[0] + 1) * sector_bytes)
    table = _at(file, _TABLE_BYTES, _ENTRIES * _ENTRY_BYTES + 2)
    # The boot sector of a file system has code there, and no valid status of partitions.
    is_table = table[-2:] == b"\x55\xaa" and set(table[:-2:_ENTRY_BYTES]) <= _STATUSES
    if not need_bytes and is_table:
        for at in range(0, _ENTRIES * _ENTRY_BYTES, _ENTRY_BYTES):
            first, count = struct.unpack_from("<II", table, at + 8)
            if table[at + 4] not in (_UNUSED, _GPT_TYPE) and count != _TO_THE_END:
                need_bytes = max(need_bytes, (first + count) * 512)
    if need_bytes > size_bytes:
        raise _truncated("its partition table", need_bytes, size_bytes, "disk-damaged")


def check_qcow2(file: IO[bytes]) -> None:
    """Raises ImageError (`unsafe-disk`) if a table or the last used cluster of a qcow2 is after the end of the file.

    The reference counts say which clusters are used. They are not read if the header says that they may be old.
    """
    size_bytes = file.seek(0, 2)
    header = _at(file, 0, 104).ljust(104, b"\0")
    version, cluster_bits, l1_entries, l1_at, table_at, table_clusters = struct.unpack_from(
        ">4xI12xI12xIQQI", header
    )  # fmt: skip
    features, count_order = (struct.unpack_from(">Q", header, 72)[0], header[99]) if version >= 3 else (0, 4)
    table_bytes = table_clusters << (cluster_bits & 63)
    if (
        cluster_bits not in _CLUSTER_BITS
        or l1_entries * 8 > _MAX_L1_BYTES
        or table_bytes > _MAX_REFCOUNT_TABLE_BYTES
        or count_order > 6
    ):
        raise ImageError("the header of the qcow2 is invalid", code="unsafe-disk", fields={"fault": "header"})
    need_bytes = max(l1_at + l1_entries * 8, table_at + table_bytes)
    if need_bytes <= size_bytes and not features & _DIRTY:
        cluster_bytes = 1 << cluster_bits
        need_bytes = max(need_bytes, _used_bytes(file, table_at, table_bytes, cluster_bytes, 1 << count_order))
    if need_bytes > size_bytes:
        raise _truncated("its header", need_bytes, size_bytes, "unsafe-disk")


def _used_bytes(file: IO[bytes], table_at: int, table_bytes: int, cluster_bytes: int, count_bits: int) -> int:
    """The least size of a qcow2 from its reference counts: the last used cluster has at least one byte.

    The table has the offset of each block of counts. A missing block is an offset of 0. Counts of less than a byte
    start at the lowest bit.
    """
    table = _at(file, table_at, table_bytes)
    last = len(table.rstrip(b"\0")) - 1
    if last < 0:
        return 0
    index = last // 8
    block_at = int.from_bytes(table[index * 8 : index * 8 + 8]) & ~0x1FF
    block = _at(file, block_at, cluster_bytes)
    if len(block) < cluster_bytes:
        return block_at + cluster_bytes
    used = len(block.rstrip(b"\0"))
    if not used:
        return 0
    number = (
        index * (cluster_bytes * 8 // count_bits) + ((used - 1) * 8 + block[used - 1].bit_length() - 1) // count_bits
    )
    return number * cluster_bytes + 1


def check_vmdk(file: IO[bytes]) -> None:
    """Raises ImageError (`disk-damaged`) if a table or the last grain of a sparse VMDK is after the end of the file."""
    size_bytes = file.seek(0, 2)
    header = _at(file, 0, 80).ljust(80, b"\0")
    flags, capacity, grain, entries = struct.unpack_from("<8xIQQ16xI", header)
    (directory_at,) = struct.unpack_from("<Q", header, 56)
    if directory_at == _IN_FOOTER:
        footer = _at(file, max(0, size_bytes - _FOOTER_BYTES), 80).ljust(80, b"\0")
        (directory_at,) = struct.unpack_from("<Q", footer, 56) if footer.startswith(b"KDMV") else (size_bytes,)
    tables = -(-capacity // (grain * entries)) if grain and 0 < entries <= _MAX_TABLE_ENTRIES else _MAX_TABLES + 1
    if tables > _MAX_TABLES or grain > 1 << 32:
        raise ImageError(
            "the header of the VMDK is invalid", code="disk-damaged", fields={"format": "vmdk", "fault": "vmdk-header"}
        )
    last, need_bytes = 0, directory_at * _SECTOR_BYTES + tables * 4
    directory = _sectors(file, directory_at, tables)
    for table_at in filter(None, directory):
        need_bytes = max(need_bytes, table_at * _SECTOR_BYTES + entries * 4)
        last = max(last, max(_sectors(file, table_at, entries), default=0))
    if last > 1:  # 1 is a grain of zeros
        at = last * _SECTOR_BYTES
        marker = _at(file, at, _MARKER_BYTES) if flags & _COMPRESSED else b""
        stored = int.from_bytes(marker[8:], "little") + _MARKER_BYTES if flags & _COMPRESSED else grain * _SECTOR_BYTES
        need_bytes = max(need_bytes, at + stored)
    if need_bytes > size_bytes:
        raise _truncated("its header", need_bytes, size_bytes, "disk-damaged")


def _sectors(file: IO[bytes], sector: int, count: int) -> array[int]:
    """Up to `count` numbers of sectors, 32 bits each, at a sector."""
    data = _at(file, sector * _SECTOR_BYTES, count * 4)
    numbers = array("I", data[: len(data) // 4 * 4])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _at(file: IO[bytes], offset: int, count: int) -> bytes:
    """Up to `count` bytes at an offset. After the end there are none: a file system refuses very large offsets."""
    if offset >= file.seek(0, 2):
        return b""
    file.seek(offset)
    return file.read(count)


def _truncated(source: str, need_bytes: int, size_bytes: int, code: str) -> ImageError:
    return ImageError(
        f"the disk is cut off: by {source} it has at least {size_words(need_bytes)} ({need_bytes} bytes), "
        f"the file has {size_words(size_bytes)} ({size_bytes} bytes)",
        code=code,
        hint="download or copy it again",
        fields={"fault": "truncated", "need_bytes": str(need_bytes), "size_bytes": str(size_bytes)},
    )
