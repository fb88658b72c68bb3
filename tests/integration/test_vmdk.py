"""VMDKs that do not hold what their size suggests."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import makevagrant
import pytest
from refused import refused

from kimbox import run
from kimbox.errors import ImageError, KimboxError
from kimbox.image.formats import boxreader

MIB = 1 << 20
SECTOR = 512


def bomb(folder: Path, capacity_bytes: int) -> Path:
    """Writes a small VMDK of that capacity in which all grains have the same place. Their content is random."""
    raw = folder / "raw"
    raw.write_bytes(os.urandom(64 << 10))
    os.truncate(raw, capacity_bytes)
    vmdk = folder / "bomb.vmdk"
    vmdk.write_bytes(makevagrant.converted(raw, "vmdk", "-o", "subformat=monolithicSparse"))
    data = bytearray(vmdk.read_bytes())
    grain_sectors, entries = struct.unpack_from("<Q", data, 20)[0], struct.unpack_from("<I", data, 44)[0]
    grain = 0
    for at in struct.unpack_from("<QQ", data, 48):  # both directories
        for index in range(-(-capacity_bytes // (grain_sectors * entries * SECTOR))):
            (table,) = struct.unpack_from("<I", data, at * SECTOR + index * 4)
            (first,) = struct.unpack_from("<I", data, table * SECTOR)
            grain = first or grain
            struct.pack_into(f"<{entries}I", data, table * SECTOR, *[grain] * entries)
    vmdk.write_bytes(data)
    return vmdk


def test_a_disk_that_is_much_larger_than_its_file(tmp_path: Path) -> None:
    """All grains have the same place: the conversion ends long before it has filled the disk of the host."""
    vmdk, target = bomb(tmp_path, 512 * MIB), tmp_path / "converted"
    with refused(ImageError, "disk-damaged", fault="vmdk-expands"):
        boxreader.from_vmdk(vmdk, target)
    assert vmdk.stat().st_size < 2 * MIB
    assert target.stat().st_size < 24 * MIB


def test_a_disk_for_which_there_is_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the missing space if that was the limit."""
    vmdk, usage = bomb(tmp_path, 512 * MIB), shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=8 * MIB))
    with refused(KimboxError, "no-space"):
        boxreader.from_vmdk(vmdk, tmp_path / "converted")


@pytest.mark.parametrize("subformat", ["streamOptimized", "monolithicSparse"])
def test_a_disk_of_random_bytes(tmp_path: Path, subformat: str) -> None:
    """The limit leaves room for a disk that cannot be compressed, and for one that is nearly empty."""
    for name, data, size_bytes in (("full", os.urandom(24 * MIB), 24 * MIB), ("empty", b"x", 64 << 30)):
        raw, vmdk, converted = (tmp_path / f"{name}.{kind}" for kind in ("raw", "vmdk", "qcow2"))
        raw.write_bytes(data)
        os.truncate(raw, size_bytes)
        run.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, vmdk])
        boxreader.from_vmdk(vmdk, converted)
        run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", converted, raw])
