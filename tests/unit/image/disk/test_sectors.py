"""MBR, GRUB's core image and the swap header, as sfdisk, swaplabel and blkid read them."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path

import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.disk import sectors
from kimbox.image.disk.derived import derived_uuid
from kimbox.run import run, which
from kimbox.spec.layout import MIB, Layout, plan
from kimbox.spec.model import Disk, Volume

LAYOUT = plan(
    Disk(512 * MIB, 64 * MIB, "vg", *(Volume(n, 64 * MIB) for n in ("root", "persistent", "swap")), Volume("s", None))
)

#: In place of GRUB's boot.img: bytes that show their offset.
BOOT_IMG = bytes(i % 251 for i in range(512))


def needs(program: str) -> pytest.MarkDecorator:
    """Returns a mark that skips a test if a program is missing."""
    return pytest.mark.skipif(not which(program), reason=f"{program} is not installed")


def partition_table(layout: Layout) -> list[tuple[int, int, int, int]]:
    """Returns flag, type, start and length of every entry. Start and length are in sectors."""
    sector = sectors.mbr(layout, "seed", BOOT_IMG)
    entries = [struct.unpack_from("<B3xB3xII", sector, 446 + 16 * i) for i in range(4)]
    return [(flag, kind, start, count) for flag, kind, start, count in entries]


def test_the_partition_table() -> None:
    """It has an active /boot and a PV at the places of the layout, and no other partition."""
    boot, pv = LAYOUT.boot, LAYOUT.pv
    assert [
        (0x80, 0x83, boot.offset_bytes // 512, boot.size_bytes // 512),
        (0x00, 0x8E, pv.offset_bytes // 512, pv.size_bytes // 512),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
    ] == partition_table(LAYOUT)


def test_the_boot_code_is_grubs_with_its_patches() -> None:
    """The patches of grub-bios-setup(8): core image from sector 1, the drive of the BIOS, no check of its number."""
    sector = sectors.mbr(LAYOUT, "seed", BOOT_IMG)
    changed = [i for i in range(440) if sector[i] != BOOT_IMG[i]]
    assert set(changed) <= {*range(0x5C, 0x64), 0x64, 0x66, 0x67}
    assert (1, 0xFF, b"\x90\x90") == (*struct.unpack_from("<QB", sector, 0x5C), sector[0x66:0x68])
    assert b"\x55\xaa" == sector[510:]


def test_the_disk_signature_follows_from_the_seed() -> None:
    """The same seed gives the same sector. Another seed gives another signature."""
    sector, other = (sectors.mbr(LAYOUT, seed, BOOT_IMG) for seed in ("a", "b"))
    assert sector == sectors.mbr(LAYOUT, "a", BOOT_IMG)
    assert {440, 441, 442, 443} >= {i for i in range(512) if sector[i] != other[i]} > set()


@pytest.mark.parametrize("size", [0, 511, 513])
def test_a_boot_img_of_another_size_is_rejected(size: int) -> None:
    """boot.img must be one sector long."""
    with refused(ImageError, "boot-loader-size", file="boot.img", size_bytes=str(size)):
        sectors.mbr(LAYOUT, "seed", bytes(size))


def test_the_core_image_fits_before_boot_or_is_rejected() -> None:
    """The space is from sector 1 to the first partition."""
    room = MIB - 512
    assert (512, b"x" * room) == sectors.core_image(LAYOUT, b"x" * room)
    for core_img in (b"", b"x" * (room + 1)):
        with refused(ImageError, "boot-loader-size", file="core.img", size_bytes=str(len(core_img))):
            sectors.core_image(LAYOUT, core_img)


@needs("sfdisk")
def test_sfdisk_reads_the_table(tmp_path: Path) -> None:
    """sfdisk reads two partitions, in order, inside the disk, and reports no fault."""
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(LAYOUT.size_bytes)
        file.seek(0)
        file.write(sectors.mbr(LAYOUT, "seed", BOOT_IMG))
    done = run(["sfdisk", "--json", disk])
    table = json.loads(done.stdout)["partitiontable"]
    assert ("dos", "sectors") == (table["label"], table["unit"])
    partitions = [(p["start"], p["size"], p["type"], p.get("bootable", False)) for p in table["partitions"]]
    boot, pv = LAYOUT.boot, LAYOUT.pv
    assert [
        (boot.offset_bytes // 512, boot.size_bytes // 512, "83", True),
        (pv.offset_bytes // 512, pv.size_bytes // 512, "8e", False),
    ] == partitions
    assert "" == run(["sfdisk", "--verify", disk]).stderr


def swap_file(path: Path) -> Path:
    """Writes the swap volume into a file and returns its path."""
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
    """swaplabel and blkid read label and UUID. The number of pages matches the size of the volume."""
    assert LAYOUT.swap
    path = swap_file(tmp_path / "swap")
    identifier = derived_uuid("seed/swap")
    fields = run(["swaplabel", path]).stdout.split()
    assert ["LABEL:", "kimbox-swap", "UUID:", str(identifier)] == fields
    probed = dict(line.split("=", 1) for line in run(["blkid", "-p", "-o", "export", path]).stdout.splitlines())
    assert ("swap", str(identifier)) == (probed["TYPE"], probed["UUID"])
    with path.open("rb") as file:
        version, last_page, bad_pages = struct.unpack_from("<III", file.read(4096), 1024)
    assert (1, LAYOUT.swap.place.size_bytes // 4096 - 1, 0) == (version, last_page, bad_pages)


def test_derived_uuids() -> None:
    """They have version 5 and depend on the seed."""
    identifier, other = derived_uuid("a"), derived_uuid("b")
    assert (5, uuid.RFC_4122) == (identifier.version, identifier.variant)
    assert identifier == derived_uuid("a") != other
