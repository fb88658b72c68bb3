"""Copies of the bytes in use of a disk: real file systems, real qcow2, LVM as kimbox writes it."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import madedisk
import pytest
from madedisk import LAYOUT, PLACES
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.disk import slim
from kimbox.image.disk.cowstore import Store
from kimbox.spec.layout import SNAPSHOT_CHUNK_BYTES

MIB = 1 << 20
UNIT = SNAPSHOT_CHUNK_BYTES
ROOT = PLACES["root"]
STORE = LAYOUT.snapshot.place


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw image."""
    path = tmp_path_factory.mktemp("base") / "base.raw"
    madedisk.make(path)
    return path


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A file of two MiB with random content."""
    path = tmp_path / "content"
    path.write_bytes(os.urandom(2 * MIB))
    return path


@pytest.fixture
def disk(base: Path, tmp_path: Path) -> Path:
    """A copy of the image, for the test to change."""
    return Path(shutil.copy(base, tmp_path / "disk.raw"))


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def slimmed(base: Path, disk: Path, tmp_path: Path, *, drop: bool = False) -> tuple[Path, Path]:
    """Returns a slim overlay of the disk, and the raw disk that the overlay shows."""
    before = madedisk.overlaid(base, disk, tmp_path / "before.qcow2")
    after = tmp_path / "after.qcow2"
    slim.overlay(before, base, "raw", after, drop_snapshots=drop)
    assert allocated(after) <= allocated(before)
    return after, madedisk.raw_of(after, tmp_path / "after.raw")


def test_deleted_files_and_swap_are_dropped_and_files_stay(
    base: Path, disk: Path, tmp_path: Path, content: Path
) -> None:
    """Every file system is intact, kept files have their content, and the space of deleted files is free."""
    for place in PLACES.values():
        madedisk.put(disk, place, "kept", content)
        (tmp_path / "junk").write_bytes(os.urandom(4 * MIB))
        madedisk.put(disk, place, "junk", tmp_path / "junk")
        madedisk.remove(disk, place, "junk")
    assert LAYOUT.swap
    madedisk.write(disk, LAYOUT.swap.place.offset_bytes + 4096, os.urandom(3 * MIB))
    after, raw = slimmed(base, disk, tmp_path)
    for place in PLACES.values():
        assert madedisk.is_sound(raw, place)
        assert content.read_bytes() == madedisk.get(raw, place, "kept", tmp_path / "got")
    assert allocated(after) < 3 * 2 * MIB + 2 * MIB
    assert b"SWAPSPACE2" == madedisk.read(raw, LAYOUT.swap.place.offset_bytes + 4086, 10)


def test_a_flat_copy_has_no_deleted_content(disk: Path, tmp_path: Path, content: Path) -> None:
    """Deleted content reads as zeros. The same disk gives the same bytes."""
    madedisk.put(disk, ROOT, "kept", content)
    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRET-OF-SOMEBODY" * 4000)
    madedisk.put(disk, ROOT, "secret", secret)
    madedisk.remove(disk, ROOT, "secret")
    assert b"SECRET-OF-SOMEBODY" in disk.read_bytes()
    slim.flatten(disk, "raw", tmp_path / "one.raw")
    slim.flatten(disk, "raw", tmp_path / "two.raw")
    flat = (tmp_path / "one.raw").read_bytes()
    assert b"SECRET-OF-SOMEBODY" not in flat
    assert flat == (tmp_path / "two.raw").read_bytes()
    assert madedisk.is_sound(tmp_path / "one.raw", ROOT)
    assert content.read_bytes() == madedisk.get(tmp_path / "one.raw", ROOT, "kept", tmp_path / "got")


def test_a_snapshot_keeps_its_content(base: Path, disk: Path, tmp_path: Path, content: Path) -> None:
    """The blocks of a file that is deleted only in the origin are free in the origin and in use in the snapshot."""
    madedisk.put(disk, ROOT, "old", content)
    before = madedisk.read(disk, ROOT.offset_bytes, ROOT.size_bytes)
    madedisk.remove(disk, ROOT, "old")
    after = madedisk.read(disk, ROOT.offset_bytes, ROOT.size_bytes)
    chunks = range(ROOT.size_bytes // UNIT)
    changed = {c: before[c * UNIT :][:UNIT] for c in chunks if before[c * UNIT :][:UNIT] != after[c * UNIT :][:UNIT]}
    assert 0 < len(changed) < 20
    madedisk.store(disk, changed)
    madedisk.write(disk, STORE.offset_bytes + 60 * UNIT, os.urandom(20 * UNIT))  # freed by an earlier snapshot
    small, raw = slimmed(base, disk, tmp_path)
    cow = Store.parse(reader(raw, STORE.offset_bytes), STORE.size_bytes, UNIT, ROOT.size_bytes)
    assert list(changed) == list(cow.exceptions)
    view = cow.view(reader(raw, ROOT.offset_bytes), reader(raw, STORE.offset_bytes))
    (tmp_path / "view").write_bytes(view(0, ROOT.size_bytes))
    extent = type(ROOT)("view", 0, ROOT.size_bytes)
    assert madedisk.is_sound(tmp_path / "view", extent)
    assert content.read_bytes() == madedisk.get(tmp_path / "view", extent, "old", tmp_path / "got")
    assert madedisk.is_sound(raw, ROOT)
    assert allocated(small) < 4 * MIB


def test_a_dropped_snapshot_is_empty(base: Path, disk: Path, tmp_path: Path) -> None:
    """Its header reads as zeros, as after a resnap boot, also if the image has another header."""
    madedisk.store(disk, {3: os.urandom(UNIT)})
    own = Path(shutil.copy(disk, tmp_path / "own.raw"))
    for image in (base, own):
        target = tmp_path / "after.qcow2"
        target.unlink(missing_ok=True)
        (tmp_path / "before.qcow2").unlink(missing_ok=True)
        _, raw = slimmed(image, disk, tmp_path, drop=True)
        assert bytes(UNIT) == madedisk.read(raw, STORE.offset_bytes, UNIT)


def reader(disk: Path, start: int) -> Callable[[int, int], bytes]:
    return lambda offset, size: madedisk.read(disk, start + offset, size)


def test_all_of_a_file_system_that_was_not_unmounted_is_copied(disk: Path, tmp_path: Path, content: Path) -> None:
    """Its journal may use blocks that are free in the bitmaps."""
    madedisk.put(disk, ROOT, "gone", content)
    madedisk.remove(disk, ROOT, "gone")
    flags = ROOT.offset_bytes + 1024 + 0x60
    (value,) = struct.unpack("<I", madedisk.read(disk, flags, 4))
    madedisk.write(disk, flags, struct.pack("<I", value | 4))
    in_use = slim.flatten(disk, "raw", tmp_path / "flat.raw")
    assert content.read_bytes()[:4096] in (tmp_path / "flat.raw").read_bytes()
    (note,) = in_use.notes
    assert note.startswith("root: the file system was not unmounted")


def bitmap_of(disk: Path) -> int:
    """Returns the offset of the first block bitmap of root."""
    (block,) = struct.unpack("<I", madedisk.read(disk, ROOT.offset_bytes + 4096, 4))
    return ROOT.offset_bytes + int(block) * 4096


def flip(offset: int) -> Callable[[Path], None]:
    return lambda disk: madedisk.write(disk, offset, bytes([madedisk.read(disk, offset, 1)[0] ^ 1]))


#: Name -> how a disk is damaged, and fields of the error.
DAMAGE: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "bitmap": (
        lambda disk: flip(bitmap_of(disk) + 100)(disk),
        {"volume": "root", "part": "file system", "fault": "bitmap-checksum", "group": "0"},
    ),
    "descriptor": (
        flip(ROOT.offset_bytes + 4096 + 0x12),
        {"volume": "root", "part": "file system", "fault": "descriptor-checksum", "group": "0"},
    ),
    "superblock": (
        flip(ROOT.offset_bytes + 1024 + 0x28),
        {"volume": "root", "part": "file system", "fault": "superblock-checksum"},
    ),
    "metadata": (
        flip(LAYOUT.pv.offset_bytes + 4096 + 512 + 40),
        {"volume": "partition 2", "part": "LVM metadata", "fault": "text-checksum"},
    ),
    "label": (
        flip(LAYOUT.pv.offset_bytes + 512 + 40),
        {"volume": "partition 2", "part": "LVM metadata", "fault": "bad-label"},
    ),
    "partition": (
        lambda disk: madedisk.write(disk, 446 + 16 + 12, b"\xff\xff\xff\x7f"),
        {"part": "partition table", "fault": "beyond-disk"},
    ),
    "overlap": (
        lambda disk: madedisk.write(disk, 446 + 16 + 8, struct.pack("<I", 2048)),
        {"part": "partition table", "fault": "partitions-overlap"},
    ),
    "store": (
        lambda disk: madedisk.store(disk, {1 << 40: b""}),
        {"volume": "root_snap", "part": "snapshot store", "fault": "bad-exception"},
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_disk_is_rejected(base: Path, disk: Path, tmp_path: Path, damage: str) -> None:
    """The error names the volume and the fault. Nothing is written, and the disk is not changed."""
    change, fields = DAMAGE[damage]
    change(disk)
    before = madedisk.overlaid(base, disk, tmp_path / "before.qcow2")
    content = before.read_bytes()
    with refused(ImageError, "disk-damaged", **fields):
        slim.overlay(before, base, "raw", tmp_path / "after.qcow2")
    assert not (tmp_path / "after.qcow2").exists()
    assert content == before.read_bytes()
