"""Disks that were cut off: detected for each format that qemu-img writes, and no complete disk is refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.formats import wholeness
from kimbox.run import run

MIB = 1 << 20


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with some data near its end."""
    path = tmp_path_factory.mktemp("disk") / "raw"
    with path.open("wb") as file:
        for at in (1, 20, 40, 62):
            file.seek(at * MIB)
            file.write(struct.pack("<I", at * 2654435761 % 2**32) * 40_000)
        file.truncate(64 * MIB)
    return path


def is_cut(check: Callable[[IO[bytes]], None], data: bytes) -> bool:
    """Whether a check detects that data is cut off. Another error is not expected."""
    try:
        check(io.BytesIO(data))
    except ImageError as error:
        if error.fields["fault"] != "truncated":
            raise
        return int(error.fields["need_bytes"]) > int(error.fields["size_bytes"]) == len(data)
    return False


@pytest.mark.parametrize(
    "options",
    [
        "", "-o compat=0.10", "-c", "-c -o compression_type=zstd,cluster_size=256k", "-o refcount_bits=1",
        "-o refcount_bits=64,cluster_size=4k", "-o lazy_refcounts=on", "-o preallocation=metadata", "-S 0",
        "-o extended_l2=on",
    ],
)  # fmt: skip
def test_a_qcow2(raw: Path, tmp_path: Path, options: str) -> None:
    """Cut within its header, its tables or its data."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options.split(), raw, tmp_path / "q"])
    data = (tmp_path / "q").read_bytes()
    assert not is_cut(wholeness.check_qcow2, data)
    for size in (511, 1 << 16, len(data) // 4, len(data) // 2, len(data) - (256 << 10)):
        assert is_cut(wholeness.check_qcow2, data[:size]), size


def test_a_qcow2_in_use(tmp_path: Path) -> None:
    """With snapshots, and larger than one block of reference counts."""
    path = tmp_path / "q"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1G"])
    run(["qemu-io", "-f", "qcow2", "-c", "write 900M 1M", "-c", "write 5M 64k", path])
    run(["qemu-img", "snapshot", "-c", "s", path])
    data = path.read_bytes()
    assert not is_cut(wholeness.check_qcow2, data)
    assert is_cut(wholeness.check_qcow2, data[:-2048])


@pytest.mark.parametrize(
    ("offset", "form", "value"), [(20, ">I", 60), (20, ">I", 8), (36, ">I", 1 << 31), (96, ">I", 7)]
)
def test_a_qcow2_with_impossible_numbers(raw: Path, tmp_path: Path, offset: int, form: str, value: int) -> None:
    """Tables that are too large are not read."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "q"])
    data = bytearray((tmp_path / "q").read_bytes())
    struct.pack_into(form, data, offset, value)
    with refused(ImageError, "unsafe-disk", fault="header"):
        wholeness.check_qcow2(io.BytesIO(data))


@pytest.mark.parametrize("subformat", ["streamOptimized", "monolithicSparse"])
def test_a_vmdk(raw: Path, tmp_path: Path, subformat: str) -> None:
    """Cut within its tables or its data."""
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, tmp_path / "v"]
    run(argv)
    data = (tmp_path / "v").read_bytes()
    assert not is_cut(wholeness.check_vmdk, data)
    for size in (600, len(data) // 4, len(data) // 2, len(data) - (70 << 10)):
        assert is_cut(wholeness.check_vmdk, data[:size]), size


@pytest.mark.parametrize(
    ("offset", "form", "value"), [(20, "<Q", 0), (20, "<Q", 1 << 40), (44, "<I", 0), (44, "<I", 513)]
)
def test_a_vmdk_with_impossible_numbers(raw: Path, tmp_path: Path, offset: int, form: str, value: int) -> None:
    """Tables that are too large are not read."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, tmp_path / "v"])
    data = bytearray((tmp_path / "v").read_bytes())
    struct.pack_into(form, data, offset, value)
    with refused(ImageError, "disk-damaged", fault="vmdk-header"):
        wholeness.check_vmdk(io.BytesIO(data))


def mbr(*partitions: tuple[int, int, int]) -> bytearray:
    """The first sectors of a disk with partitions: type, first sector, number of sectors."""
    data = bytearray(8192)
    data[510:512] = b"\x55\xaa"
    for index, (kind, first, count) in enumerate(partitions):
        struct.pack_into("<B3xII", data, 446 + 16 * index + 4, kind, first, count)
    return data


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [
        ([], False),
        ([(0x83, 2048, 1 << 20)], True),
        ([(0x83, 1, 15)], False),
        ([(0x83, 1, 16)], True),
        ([(0, 2048, 1 << 20)], False),
        ([(0xEE, 1, 0xFFFFFFFF)], False),
        ([(0x83, 1, 15), (0x8E, 1 << 31, 1 << 31)], True),
    ],
)
def test_a_raw_disk(partitions: list[tuple[int, int, int]], expected: bool) -> None:
    """The end of its last partition counts, also if it has the largest numbers."""
    assert expected == is_cut(wholeness.check_raw, bytes(mbr(*partitions)))


def test_a_boot_sector_that_is_not_a_partition_table() -> None:
    """Its code is not read as partitions."""
    data = mbr((0x83, 2048, 1 << 20))
    data[446 + 16] = 0x31
    assert not is_cut(wholeness.check_raw, bytes(data))


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_raw_disk_with_a_gpt(sector_bytes: int) -> None:
    """The place of the second header counts, which is the last sector of the disk."""
    for last, expected in ((8192 // sector_bytes - 1, False), (8192 // sector_bytes, True), ((1 << 64) - 1, True)):
        data = mbr((0xEE, 1, 0xFFFFFFFF))
        data[sector_bytes : sector_bytes + 8] = b"EFI PART"
        struct.pack_into("<Q", data, sector_bytes + 32, last)
        assert expected == is_cut(wholeness.check_raw, bytes(data))
    assert not is_cut(wholeness.check_raw, b"")
    assert not is_cut(wholeness.check_raw, bytes(600))


@pytest.mark.parametrize("sector", [1 << 34, 1 << 50, (1 << 62) // 512])
def test_a_table_at_an_offset_that_no_file_has(tmp_path: Path, sector: int) -> None:
    """A file system refuses to seek there. The disk is cut off."""
    header = bytearray(512)
    struct.pack_into("<4sIIQQ", header, 0, b"KDMV", 1, 3, 2048, 128)
    struct.pack_into("<I", header, 44, 512)
    struct.pack_into("<Q", header, 56, sector)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(header)
    with path.open("rb") as file, refused(ImageError, "disk-damaged", fault="truncated"):
        wholeness.check_vmdk(file)
