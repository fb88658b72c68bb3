"""MBR, GRUB's place and the swap header, as the usual programs read them."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path

import pytest

from kimbox.errors import ImageError
from kimbox.image.disk import sectors
from kimbox.run import run, which
from kimbox.spec.layout import MIB, Layout, plan
from kimbox.spec.model import Disk, Volume

LAYOUT = plan(
    Disk(512 * MIB, 64 * MIB, "vg", *(Volume(n, 64 * MIB) for n in ("root", "persistent", "swap")), Volume("s", None))
)

#: Stands for GRUB's boot.img: every byte tells where it was.
BOOT_IMG = bytes(i % 251 for i in range(512))


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where a program is missing."""
    return pytest.mark.skipif(not which(program), reason=f"{program} is not installed")


def partition_table(layout: Layout) -> list[tuple[int, int, int, int]]:
    """Flag, type, start and length of every entry, in sectors."""
    sector = sectors.mbr(layout, "seed", BOOT_IMG)
    entries = [struct.unpack_from("<B3xB3xII", sector, 446 + 16 * i) for i in range(4)]
    return [(flag, kind, start, count) for flag, kind, start, count in entries]


def test_the_partition_table() -> None:
    """An active /boot and a PV, where the layout has them, and nothing else."""
    boot, pv = LAYOUT.boot, LAYOUT.pv
    assert [
        (0x80, 0x83, boot.offset_bytes // 512, boot.size_bytes // 512),
        (0x00, 0x8E, pv.offset_bytes // 512, pv.size_bytes // 512),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
    ] == partition_table(LAYOUT)


def test_the_boot_code_is_grubs_with_its_patches() -> None:
    """As grub-bios-setup(8) would: core image from sector 1, the BIOS's drive, no check of it; all else unchanged."""
    sector = sectors.mbr(LAYOUT, "seed", BOOT_IMG)
    changed = [i for i in range(440) if sector[i] != BOOT_IMG[i]]
    assert set(changed) <= {*range(0x5C, 0x64), 0x64, 0x66, 0x67}
    assert (1, 0xFF, b"\x90\x90") == (*struct.unpack_from("<QB", sector, 0x5C), sector[0x66:0x68])
    assert b"\x55\xaa" == sector[510:]


def test_the_disk_signature_follows_from_the_seed() -> None:
    """The same seed gives the same sector, another one another signature."""
    one, other = (sectors.mbr(LAYOUT, seed, BOOT_IMG) for seed in ("a", "b"))
    assert one == sectors.mbr(LAYOUT, "a", BOOT_IMG)
    assert {440, 441, 442, 443} >= {i for i in range(512) if one[i] != other[i]} > set()


@pytest.mark.parametrize("size", [0, 511, 513])
def test_a_boot_img_of_another_size_is_refused(size: int) -> None:
    """What is no sector is no boot.img."""
    with pytest.raises(ImageError, match=f"{size} bytes"):
        sectors.mbr(LAYOUT, "seed", bytes(size))


def test_the_core_image_fits_before_boot_or_is_refused() -> None:
    """Sector 1 up to the first partition, and not a byte more."""
    room = MIB - 512
    assert (512, b"x" * room) == sectors.core_image(LAYOUT, b"x" * room)
    for wrong in (b"", b"x" * (room + 1)):
        with pytest.raises(ImageError, match="there is room"):
            sectors.core_image(LAYOUT, wrong)


@needs("sfdisk")
def test_sfdisk_reads_the_table(tmp_path: Path) -> None:
    """The usual tool sees two partitions, in order, inside the disk."""
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(LAYOUT.size_bytes)
        file.seek(0)
        file.write(sectors.mbr(LAYOUT, "seed", BOOT_IMG))
    done = run(["sfdisk", "--json", disk])
    table = json.loads(done.stdout)["partitiontable"]
    assert ("dos", "sectors") == (table["label"], table["unit"])
    found = [(p["start"], p["size"], p["type"], p.get("bootable", False)) for p in table["partitions"]]
    boot, pv = LAYOUT.boot, LAYOUT.pv
    assert [
        (boot.offset_bytes // 512, boot.size_bytes // 512, "83", True),
        (pv.offset_bytes // 512, pv.size_bytes // 512, "8e", False),
    ] == found
    assert "" == run(["sfdisk", "--verify", disk]).stderr


def swap_file(path: Path) -> Path:
    """The swap volume as a file of its own."""
    assert LAYOUT.swap
    with path.open("wb") as file:
        file.truncate(LAYOUT.swap.place.size_bytes)
        for offset, data in sectors.swap_header(LAYOUT.swap, "seed"):
            file.seek(offset - LAYOUT.swap.place.offset_bytes)
            file.write(data)
    return path


@needs("swaplabel")
@needs("blkid")
def test_the_swap_header(tmp_path: Path) -> None:
    """swaplabel and blkid find label and UUID, and the number of pages is that of the volume."""
    assert LAYOUT.swap
    path = swap_file(tmp_path / "swap")
    identifier = sectors.derived_uuid("seed/swap")
    said = run(["swaplabel", path]).stdout.split()
    assert ["LABEL:", "kimbox-swap", "UUID:", str(identifier)] == said
    probed = dict(line.split("=", 1) for line in run(["blkid", "-p", "-o", "export", path]).stdout.splitlines())
    assert ("swap", str(identifier)) == (probed["TYPE"], probed["UUID"])
    with path.open("rb") as file:
        version, last_page, bad_pages = struct.unpack_from("<III", file.read(4096), 1024)
    assert (1, LAYOUT.swap.place.size_bytes // 4096 - 1, 0) == (version, last_page, bad_pages)


def test_derived_uuids() -> None:
    """They are of version 5, and differ with the seed."""
    one, other = sectors.derived_uuid("a"), sectors.derived_uuid("b")
    assert (5, uuid.RFC_4122) == (one.version, one.variant)
    assert one == sectors.derived_uuid("a") != other
