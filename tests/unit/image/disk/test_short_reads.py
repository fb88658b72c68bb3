"""Disks that end within a structure: an error of a damaged disk, and no exception of Python."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import madedisk
import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.disk import cowstore, faults, partitions, sectors
from kimbox.image.disk.lvm import reader, writer

Read = Callable[[int, int], bytes]


def of(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


def protective_mbr() -> bytes:
    """The MBR of a disk with a GPT. The GPT itself is missing."""
    mbr = bytearray(sectors.mbr(madedisk.LAYOUT, "x", bytes(512)))
    mbr[446 + 4] = partitions.TYPE_GPT
    return bytes(mbr)


def label_alone() -> bytes:
    """A physical volume that ends after its label."""
    data = bytearray(4096)
    base = madedisk.LAYOUT.pv.offset_bytes
    for offset, piece in writer.pieces(madedisk.LAYOUT, "x", 0):
        if offset - base < 4096:
            data[offset - base : offset - base + len(piece)] = piece
    return bytes(data)


@pytest.mark.parametrize("left", [0, 1, 90])
def test_a_disk_that_ends_in_its_partition_table(left: int) -> None:
    """Sector 1 should have the GPT."""
    with refused(ImageError, "disk-damaged", fault="truncated", part="partition table"):
        partitions.entries(of(protective_mbr() + bytes(left)), 1 << 30)


def test_a_volume_that_ends_in_its_metadata() -> None:
    """The label says where the metadata is."""
    with refused(ImageError, "disk-damaged", fault="truncated", part="LVM metadata"):
        reader.read_group(of(label_alone()), madedisk.LAYOUT.pv.size_bytes)


@pytest.mark.parametrize("offset", [-1, 1 << 62, 1 << 63, 1 << 90])
def test_an_offset_that_no_disk_has(offset: int) -> None:
    """A block number of a guest, times the size of a block: pread(2) would raise an exception of Python."""
    with refused(ImageError, "disk-damaged", fault="truncated"):
        faults.exact(lambda at, size: os.pread(0, size, at))(offset, 16)


@pytest.mark.parametrize("left", [0, 8, 16, 4096, 5000])
def test_a_store_that_ends_in_its_tables(left: int) -> None:
    """The header, or a table of exceptions, is not complete."""
    header = struct.pack("<IIII", cowstore.MAGIC, 1, 1, 8).ljust(4096, b"\0")
    with refused(ImageError, "disk-damaged", fault="truncated", part="snapshot store"):
        cowstore.Store.parse(of((header + bytes(4096))[:left]), 1 << 20, 4096, 1 << 20)
