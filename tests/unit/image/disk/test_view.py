"""The view of a disk: which volume is root, what is refused, and that nothing is read twice."""

from __future__ import annotations

import ast
import struct
from pathlib import Path

import diskreads
import madedisk
import pytest

from kimbox import paths
from kimbox.errors import ImageError
from kimbox.image.disk import inuse, rawdisk, view
from kimbox.image.disk.lvm import reader
from kimbox.image.disk.lvm.reader import Group, Segment, Snapshot
from kimbox.image.disk.partitions import Entry
from kimbox.image.disk.view import BOOT, PERSISTENT, ROOT, DiskView, Volume

START, MIB = 1 << 20, 1 << 20


def group(snapshots: dict[str, str], *, pieces: int = 1) -> Group:
    """A group in which root lies first, in so many pieces, and home behind it; `snapshots` by their stores."""
    root = tuple(Segment(i * MIB, MIB, START + 2 * i * MIB) for i in range(pieces))
    volumes = {"root": reader.Volume("root", root), "home": reader.Volume("home", (Segment(0, MIB, START + 20 * MIB),))}
    for number, store in enumerate(snapshots):
        volumes[store] = reader.Volume(store, (Segment(0, MIB, START + (30 + number) * MIB),))
    made = tuple(Snapshot(store, origin, 4096) for store, origin in snapshots.items())
    return Group("vg", START, START + 100 * MIB, volumes, made)


@pytest.mark.parametrize(
    "snapshots", [{"snap": "root"}, {"snap": "root", "mine": "root"}, {"mine": "home", "snap": "root", "x": "home"}]
)
def test_root_is_what_has_a_snapshot_and_lies_first(snapshots: dict[str, str]) -> None:
    """More snapshots of root, and of other volumes, are no other layout."""
    assert "root" == view.root_of(group(snapshots))


@pytest.mark.parametrize(
    ("words", "snapshots", "pieces"),
    [
        ("it has no volume root with a snapshot", {}, 1),
        ("the volume root lies in 2 pieces", {"snap": "root"}, 2),
    ],
)
def test_a_disk_without_root_in_one_piece_is_refused(words: str, snapshots: dict[str, str], pieces: int) -> None:
    """Its files cannot be changed by their place then."""
    with pytest.raises(ImageError, match=words):
        view.root_of(group(snapshots, pieces=pieces))


def test_a_disk_with_more_snapshots_has_no_known_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them a box would run on is not known; it is no traceback. /boot and root are known all the same."""
    entries = [Entry(0, MIB, 1), Entry(MIB, 200 * MIB, 2)]
    monkeypatch.setattr(view.partitions, "entries", lambda *_: entries)
    monkeypatch.setattr(view.reader, "read_group", lambda *_: group({"snap": "root", "mine": "root"}))
    disk = DiskView.of(lambda _, size: bytes(size), 200 * MIB)
    assert ((0, MIB),) == disk.boot.pieces
    assert ((MIB + START, MIB),) == disk.root.pieces
    with pytest.raises(ImageError, match="more snapshots than the one of root"):
        _ = disk.contents


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        ("it has 0 partitions, not two", []),
        ("it has 1 partitions, not two", [(1, 8)]),
        ("names a partition beyond the disk", [(1, 8), (8, 3000)]),
        ("lie over each other", [(1, 8), (7, 9)]),
        ("it is no physical volume of LVM", [(1, 8), (8, 16)]),
    ],
)
def test_a_disk_of_another_layout_is_refused(words: str, entries: list[tuple[int, int]]) -> None:
    """With what is wrong, and that it is about the layout."""
    with pytest.raises(ImageError, match=f"not the layout of kimbox's images: .*{words}"):
        disk_of(entries).check_layout()


def disk_of(entries: list[tuple[int, int]]) -> DiskView:
    """A disk of zeros with an MBR: first and end sector of each partition."""
    data = bytearray(MIB)
    for index, (first, end) in enumerate(entries):
        struct.pack_into("<B3xII", data, 446 + 16 * index + 4, 0x83, first, end - first)
    data[510:512] = b"\x55\xaa"
    return DiskView.of(lambda offset, size: bytes(data[offset : offset + size]), MIB)


def test_partitions_are_in_the_order_of_the_disk_with_their_numbers() -> None:
    """A table need not have them in order."""
    found = disk_of([(8, 16), (1, 8)]).partitions
    assert [(2, 512), (1, 8 * 512)] == [(partition.number, partition.volume.start_bytes) for partition in found]


def test_ranges_of_a_volume_in_pieces() -> None:
    """Each part is where its piece lies on the disk."""
    volume = Volume("home", ((1000, 10), (2000, 20), (3000, 5)), lambda _, size: bytes(size))
    assert [(1000, 1010), (2000, 2020), (3000, 3005)] == volume.on_disk([(0, 35)])
    assert [(1008, 1010), (2000, 2001), (3002, 3004)] == volume.on_disk([(8, 11), (32, 34)])
    assert (35, 1000, 3005) == (volume.size_bytes, volume.start_bytes, volume.end_bytes)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with real file systems, and with all that kimbox reads."""
    madedisk.make(tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


def test_each_part_of_a_disk_is_read_once(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of it, and after a write to its file systems, too; nothing is read before it is asked for."""
    read = diskreads.count(monkeypatch)
    with rawdisk.opened(disk) as view:
        assert (0, 0, 0) == (read.tables, read.groups, read.file_systems)
        assert 2 == len(view.partitions)
        assert (1, 0, 0) == (read.tables, read.groups, read.file_systems)
        for _ in range(2):
            assert {BOOT, ROOT, PERSISTENT} == set(view.contents.mounted)
            assert view.contents.mounted[ROOT].file_system is view.root.file_system
            assert view.boot.file_system.label == "kimbox-boot"
            assert 1 == len(view.contents.swaps)
        assert (1, 1, 3) == (read.tables, read.groups, read.file_systems)
        assert {BOOT, ROOT, PERSISTENT} == set(view.reopened().contents.mounted)
        assert (1, 1, 6) == (read.tables, read.groups, read.file_systems)
        assert inuse.find(view) == inuse.find(view.reopened())
        assert (1, 1) == (read.tables, read.groups)


def test_a_view_after_a_write_sees_what_was_written(disk: Path) -> None:
    """The one from before has kept what it read."""
    with rawdisk.writable(disk) as raw:
        before = raw.view()
        label_at = before.root.start_bytes + 1024 + 0x78
        assert "kimbox-root" == before.root.file_system.label
        raw.write(label_at, b"other\0")
        assert "kimbox-root" == before.root.file_system.label
        assert "other" == before.reopened().root.file_system.label
        assert "other" == before.root.reopened().file_system.label


def test_debugfs_is_run_by_one_module() -> None:
    """No other module names the program in an argument, or in a script for it."""
    folder = paths.provisioners_dir().parent / "kimbox"
    naming = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and (node.value == "debugfs" or "set_inode_field" in str(node.value))
    }
    assert {"image/disk/debugfs.py"} == naming
