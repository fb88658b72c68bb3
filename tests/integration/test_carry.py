"""A disk on another image gets the volume `persistent` of the disk before: real qcow2 overlays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs
import madedisk
import pytest
from madedisk import LAYOUT, PLACES
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.disk import carry, pristine
from kimbox.image.disk.view import DiskView, Volume
from kimbox.run import run

MIB = 1 << 20


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images that differ, and a disk on the first one with a file of 6 MiB on `persistent` and changes of root."""
    folder = tmp_path_factory.mktemp("carried")
    for name in ("first", "second", "mine"):
        (folder / name).write_bytes(os.urandom(6 * MIB))
    for image in ("first", "second"):
        madedisk.make(folder / f"{image}.raw")
        madedisk.put(folder / f"{image}.raw", PLACES["persistent"], image, folder / image)
    changed = Path(shutil.copy(folder / "first.raw", folder / "changed.raw"))
    madedisk.put(changed, PLACES["persistent"], "mine", folder / "mine")
    madedisk.overlaid(folder / "first.raw", changed, folder / "disk.qcow2")
    run(
        [
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            f"write -P 0xa5 {LAYOUT.root.place.offset_bytes + 3 * MIB} 4096",
            folder / "disk.qcow2",
        ]
    )
    return folder


def place_of(disk: Path, name: str) -> bytes:
    """The bytes of a volume of a raw disk."""
    place = PLACES[name]
    return madedisk.read(disk, place.offset_bytes, place.size_bytes)


def test_only_persistent_is_carried(disks: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.qcow2"
    carry.persistent(disks / "disk.qcow2", disks / "second.raw", "raw", target, LAYOUT.size_bytes)
    new = madedisk.raw_of(target, tmp_path / "new.raw")
    old = madedisk.raw_of(disks / "disk.qcow2", tmp_path / "old.raw")
    assert place_of(new, "persistent") == place_of(old, "persistent")
    start = PLACES["persistent"].offset_bytes
    end = start + PLACES["persistent"].size_bytes
    image, result = (disks / "second.raw").read_bytes(), new.read_bytes()
    assert (result[:start], result[end:]) == (image[:start], image[end:])


def test_a_smaller_volume_is_refused(disks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old volume appears larger than it is: the images of the test have one layout."""
    original, asked = pristine.persistent, []

    def larger_at_first(view: DiskView) -> Volume:
        volume = original(view)
        asked.append(volume)
        ((start, size),) = volume.pieces
        return attrs.evolve(volume, pieces=((start, size + MIB),)) if len(asked) == 1 else volume

    monkeypatch.setattr(pristine, "persistent", larger_at_first)
    with refused(ImageError, code="disk-layout", fault="persistent-smaller"):
        carry.persistent(disks / "disk.qcow2", disks / "second.raw", "raw", tmp_path / "new.qcow2", 0)
    assert not list(tmp_path.iterdir())
