"""A disk with a kept root: copies for others do not have it, a smaller disk of the box has it, and the host ends it."""

from __future__ import annotations

from pathlib import Path

import attrs
import madedisk
import pytest
from clirun import world as world
from makemachine import make_machine
from tinyimage import DISK

from kimbox.image.disk import pristine, rawdisk, slim
from kimbox.machine import bootmode
from kimbox.machine.bootmode import Choice
from kimbox.spec.layout import MIB, LogicalVolume, plan
from kimbox.spec.model import BootMode

LAYOUT = plan(
    attrs.evolve(DISK, root=attrs.evolve(DISK.root, size_bytes=160 * MIB), size_bytes=DISK.size_bytes + 800 * MIB)
)

#: Size of the kept data, and of what an earlier, longer one has left after it.
DATA_BYTES, STALE_BYTES = 300_000, 2 * MIB


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image with room for a kept root."""
    monkeypatch.setattr(madedisk, "LAYOUT", LAYOUT)
    places = {"boot": LAYOUT.boot, "root": LAYOUT.root.place, "persistent": LAYOUT.persistent.place}
    monkeypatch.setattr(madedisk, "PLACES", places)
    madedisk.make(tmp_path / "base.raw")
    return tmp_path / "base.raw"


@pytest.fixture
def disk(base: Path, tmp_path: Path) -> Path:
    """The raw disk of a box that has kept a root."""
    path = tmp_path / "disk.raw"
    path.write_bytes(base.read_bytes())
    header = f"kimbox-kept 2\n{'a' * 64}\n6.12.0-cloud-amd64\n4096\n{DATA_BYTES}\nlz4\nend\n"
    with path.open("r+b") as file:
        file.seek(kept().place.offset_bytes)
        file.write(header.encode())
        file.seek(kept().place.offset_bytes + MIB)
        file.write(b"d" * DATA_BYTES + b"s" * STALE_BYTES)
    return path


def kept() -> LogicalVolume:
    """The volume for the kept root."""
    assert LAYOUT.kept
    return LAYOUT.kept


def content(disk: Path) -> tuple[bytes, bytes]:
    """Returns the first bytes of the header and the data after it, without trailing zeros."""
    read = madedisk.read(disk, kept().place.offset_bytes, 3 * MIB + DATA_BYTES)
    return read[:11].rstrip(b"\0"), read[MIB:].rstrip(b"\0")


def test_a_package_has_no_kept_root_and_a_smaller_disk_has_it(base: Path, disk: Path, tmp_path: Path) -> None:
    """What an earlier kept root has left is in neither. The volume is no unknown content."""
    slim.flatten(disk, "raw", tmp_path / "packed.raw", drop_snapshots=True)
    assert content(tmp_path / "packed.raw") == (b"", b"")
    with rawdisk.opened(disk) as view:
        assert view.contents.unknown == ()
    before = madedisk.overlaid(base, disk, tmp_path / "before.qcow2")
    slim.overlay(before, base, "raw", tmp_path / "after.qcow2", drop_snapshots=True)
    assert content(madedisk.raw_of(tmp_path / "after.qcow2", tmp_path / "after.raw")) == (
        b"kimbox-kept",
        b"d" * DATA_BYTES,
    )


def test_the_host_ends_a_kept_root(base: Path, disk: Path, tmp_path: Path, world: Path) -> None:
    """Once. A kept root is no difference of a sealed box from its image."""
    machine = make_machine()
    machine.disk.unlink()
    madedisk.overlaid(base, disk, machine.disk)
    assert pristine.differences(machine.disk, base, "raw") == ()
    assert not bootmode.end_kept(machine, unless="a" * 64)
    bootmode.choose(machine, BootMode.RESNAP, Choice(manifest="a" * 64))
    assert content(madedisk.raw_of(machine.disk, tmp_path / "same.raw"))[0] == b"kimbox-kept"
    bootmode.choose(machine, BootMode.RESNAP, Choice(manifest="b" * 64))
    assert content(madedisk.raw_of(machine.disk, tmp_path / "ended.raw"))[0] == b""
    assert not bootmode.end_kept(machine)
