"""Copies of the used bytes of disks: real file systems, real qcow2, LVM as kimbox writes it."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import madedisk
import pytest
from madedisk import LAYOUT, PLACES

from kimbox.errors import ImageError
from kimbox.image.disk.cowstore import Store
from kimbox.image.formats import slim
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
    """A file with 2 MiB of random bytes."""
    path = tmp_path / "content"
    path.write_bytes(os.urandom(2 * MIB))
    return path


@pytest.fixture
def disk(base: Path, tmp_path: Path) -> Path:
    """A copy of the image, to be changed."""
    return Path(shutil.copy(base, tmp_path / "disk.raw"))


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def slimmed(base: Path, disk: Path, tmp_path: Path, *, drop: bool = False) -> tuple[Path, Path]:
    """The slim overlay of the disk, and its content as a raw disk."""
    before = madedisk.overlaid(base, disk, tmp_path / "before.qcow2")
    after = tmp_path / "after.qcow2"
    slim.overlay(before, base, "raw", after, drop_snapshots=drop)
    assert allocated(after) <= allocated(before)
    return after, madedisk.raw_of(after, tmp_path / "after.raw")


def test_deleted_files_and_swap_are_dropped(base: Path, disk: Path, tmp_path: Path, content: Path) -> None:
    """Every file system is sound, other files are complete, and the copy does not use space for the dropped bytes."""
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


def test_a_flat_copy_holds_nothing_that_was_deleted(disk: Path, tmp_path: Path, content: Path) -> None:
    """Deleted data is zero in the copy. Equal disks give equal bytes."""
    madedisk.put(disk, ROOT, "kept", content)
    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRET-OF-SOMEBODY" * 4000)
    madedisk.put(disk, ROOT, "secret", secret)
    madedisk.remove(disk, ROOT, "secret")
    assert b"SECRET-OF-SOMEBODY" in disk.read_bytes()
    slim.flatten(disk, "raw", tmp_path / "one.raw")
    slim.flatten(disk, "raw", tmp_path / "two.raw")
    first = (tmp_path / "one.raw").read_bytes()
    assert b"SECRET-OF-SOMEBODY" not in first
    assert first == (tmp_path / "two.raw").read_bytes()
    assert madedisk.is_sound(tmp_path / "one.raw", ROOT)
    assert content.read_bytes() == madedisk.get(tmp_path / "one.raw", ROOT, "kept", tmp_path / "got")


def test_a_snapshot_keeps_what_it_shows(base: Path, disk: Path, tmp_path: Path, content: Path) -> None:
    """A file that is deleted in root stays in the snapshot: its blocks are free in root, but in use in the snapshot."""
    madedisk.put(disk, ROOT, "old", content)
    before = madedisk.read(disk, ROOT.offset_bytes, ROOT.size_bytes)
    madedisk.remove(disk, ROOT, "old")
    after = madedisk.read(disk, ROOT.offset_bytes, ROOT.size_bytes)
    chunks = range(ROOT.size_bytes // UNIT)
    moved = {c: before[c * UNIT :][:UNIT] for c in chunks if before[c * UNIT :][:UNIT] != after[c * UNIT :][:UNIT]}
    assert 0 < len(moved) < 20
    madedisk.store(disk, moved)
    madedisk.write(disk, STORE.offset_bytes + 60 * UNIT, os.urandom(20 * UNIT))  # freed by an earlier snapshot
    small, raw = slimmed(base, disk, tmp_path)
    store = Store.parse(reader(raw, STORE.offset_bytes), STORE.size_bytes, UNIT, ROOT.size_bytes)
    assert list(moved) == list(store.moved)
    view = store.view(reader(raw, ROOT.offset_bytes), reader(raw, STORE.offset_bytes))
    (tmp_path / "view").write_bytes(view(0, ROOT.size_bytes))
    view_place = type(ROOT)("view", 0, ROOT.size_bytes)
    assert madedisk.is_sound(tmp_path / "view", view_place)
    assert content.read_bytes() == madedisk.get(tmp_path / "view", view_place, "old", tmp_path / "got")
    assert madedisk.is_sound(raw, ROOT)
    assert allocated(small) < 4 * MIB


def test_a_dropped_snapshot_is_empty(base: Path, disk: Path, tmp_path: Path) -> None:
    """Its header is zero, as after a resnap boot, also if that of the image is not."""
    madedisk.store(disk, {3: os.urandom(UNIT)})
    with_snapshot = Path(shutil.copy(disk, tmp_path / "own.raw"))
    for image in (base, with_snapshot):
        target = tmp_path / "after.qcow2"
        target.unlink(missing_ok=True)
        (tmp_path / "before.qcow2").unlink(missing_ok=True)
        _, raw = slimmed(image, disk, tmp_path, drop=True)
        assert bytes(UNIT) == madedisk.read(raw, STORE.offset_bytes, UNIT)


def reader(disk: Path, start: int) -> Callable[[int, int], bytes]:
    return lambda offset, size: madedisk.read(disk, start + offset, size)


def test_a_file_system_that_was_not_unmounted_is_copied_completely(disk: Path, tmp_path: Path, content: Path) -> None:
    """Its journal may use blocks that are free in the bitmaps."""
    madedisk.put(disk, ROOT, "gone", content)
    madedisk.remove(disk, ROOT, "gone")
    flags = ROOT.offset_bytes + 1024 + 0x60
    (value,) = struct.unpack("<I", madedisk.read(disk, flags, 4))
    madedisk.write(disk, flags, struct.pack("<I", value | 4))
    in_use = slim.flatten(disk, "raw", tmp_path / "flat.raw")
    assert content.read_bytes()[:4096] in (tmp_path / "flat.raw").read_bytes()
    (note,) = in_use.notes
    assert note.startswith("root: its file system was not unmounted")


def bitmap_of(disk: Path) -> int:
    """Offset of the first block bitmap of root on the disk, in bytes."""
    (block,) = struct.unpack("<I", madedisk.read(disk, ROOT.offset_bytes + 4096, 4))
    return ROOT.offset_bytes + int(block) * 4096


def flip(offset: int) -> Callable[[Path], None]:
    return lambda disk: madedisk.write(disk, offset, bytes([madedisk.read(disk, offset, 1)[0] ^ 1]))


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "bitmap": (lambda disk: flip(bitmap_of(disk) + 100)(disk), "root: .* checksum of the bitmap of group 0"),
    "descriptor": (flip(ROOT.offset_bytes + 4096 + 0x12), "root: .* description of group 0"),
    "superblock": (flip(ROOT.offset_bytes + 1024 + 0x28), "root: .* superblock"),
    "metadata": (flip(LAYOUT.pv.offset_bytes + 4096 + 512 + 40), "partition 2: .* checksum of its text"),
    "label": (flip(LAYOUT.pv.offset_bytes + 512 + 40), "partition 2: .* label"),
    "partition": (lambda disk: madedisk.write(disk, 446 + 16 + 12, b"\xff\xff\xff\x7f"), "beyond the disk"),
    "overlap": (lambda disk: madedisk.write(disk, 446 + 16 + 8, struct.pack("<I", 2048)), "over each other"),
    "store": (lambda disk: madedisk.store(disk, {1 << 40: b""}), "root_snap: .* a chunk that cannot be"),
}


@pytest.mark.parametrize("harm", list(HARMS))
def test_a_damaged_disk_is_refused(base: Path, disk: Path, tmp_path: Path, harm: str) -> None:
    """The error names the damaged part, no file is written, and the disk does not change."""
    change, words = HARMS[harm]
    change(disk)
    before = madedisk.overlaid(base, disk, tmp_path / "before.qcow2")
    content = before.read_bytes()
    with pytest.raises(ImageError, match=words):
        slim.overlay(before, base, "raw", tmp_path / "after.qcow2")
    assert not (tmp_path / "after.qcow2").exists()
    assert content == before.read_bytes()
