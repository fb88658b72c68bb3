"""The view of a disk: which volume is root, which disks are rejected, and that nothing is read twice."""

from __future__ import annotations

import ast
import struct
from pathlib import Path

import diskreads
import madedisk
import pytest
from refused import refused

from kimbox import paths
from kimbox.errors import ImageError
from kimbox.image.disk import inuse, rawdisk, view
from kimbox.image.disk.lvm import reader
from kimbox.image.disk.lvm.reader import Group, Segment, Snapshot
from kimbox.image.disk.partitions import Entry
from kimbox.image.disk.view import BOOT, PERSISTENT, ROOT, DiskView, Volume

START, MIB = 1 << 20, 1 << 20


def group(snapshots: dict[str, str], *, pieces: int = 1) -> Group:
    """Returns a group with root first, in `pieces` pieces, and then home. `snapshots`: store -> origin."""
    root = tuple(Segment(i * MIB, MIB, START + 2 * i * MIB) for i in range(pieces))
    volumes = {"root": reader.Volume("root", root), "home": reader.Volume("home", (Segment(0, MIB, START + 20 * MIB),))}
    for number, store in enumerate(snapshots):
        volumes[store] = reader.Volume(store, (Segment(0, MIB, START + (30 + number) * MIB),))
    of_origins = tuple(Snapshot(store, origin, 4096) for store, origin in snapshots.items())
    return Group("vg", START, START + 100 * MIB, volumes, of_origins)


@pytest.mark.parametrize(
    "snapshots", [{"snap": "root"}, {"snap": "root", "mine": "root"}, {"mine": "home", "snap": "root", "x": "home"}]
)
def test_root_is_the_first_volume_with_a_snapshot(snapshots: dict[str, str]) -> None:
    """More snapshots, of root and of other volumes, are allowed."""
    assert "root" == view.root_of(group(snapshots))


def test_a_disk_without_a_snapshot_of_root_is_rejected() -> None:
    """Nothing shows which volume is the root. One that has grown may be in pieces."""
    assert "root" == view.root_of(group({"snap": "root"}, pieces=2))
    with refused(ImageError, "disk-layout", fault="no-root-snapshot"):
        view.root_of(group({}))


def test_a_disk_with_more_snapshots_has_no_known_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot that a box runs on is not known: an error, and no traceback. /boot and root are still known."""
    entries = [Entry(0, MIB, 1), Entry(MIB, 200 * MIB, 2)]
    monkeypatch.setattr(view.partitions, "entries", lambda *_: entries)
    monkeypatch.setattr(view.reader, "read_group", lambda *_: group({"snap": "root", "mine": "root"}))
    disk = DiskView.of(lambda _, size: bytes(size), 200 * MIB)
    assert ((0, MIB),) == disk.boot.pieces
    assert ((MIB + START, MIB),) == disk.root.pieces
    with refused(ImageError, "disk-layout", fault="number-of-snapshots"):
        _ = disk.contents


@pytest.mark.parametrize(
    ("fields", "entries"),
    [
        ({"fault": "number-of-partitions"}, []),
        ({"fault": "number-of-partitions"}, [(1, 8)]),
        ({"fault": "beyond-disk", "partition": "2"}, [(1, 8), (8, 3000)]),
        ({"fault": "partitions-overlap"}, [(1, 8), (7, 9)]),
        ({"fault": "no-lvm"}, [(1, 8), (8, 16)]),
    ],
)
def test_a_disk_of_another_layout_is_rejected(fields: dict[str, str], entries: list[tuple[int, int]]) -> None:
    """The error has the reason."""
    with refused(ImageError, "disk-layout", **fields):
        disk_of(entries).check_layout()


def test_the_message_for_another_layout() -> None:
    """It names the layout, then the reason."""
    with pytest.raises(ImageError) as caught:
        disk_of([(1, 8)]).check_layout()
    assert "the disk does not have the layout of kimbox's images: 1 partitions instead of 2" == caught.value.message


def disk_of(entries: list[tuple[int, int]]) -> DiskView:
    """Returns a disk of zeros with an MBR. `entries`: first and end sector of each partition."""
    data = bytearray(MIB)
    for index, (first, end) in enumerate(entries):
        struct.pack_into("<B3xII", data, 446 + 16 * index + 4, 0x83, first, end - first)
    data[510:512] = b"\x55\xaa"
    return DiskView.of(lambda offset, size: bytes(data[offset : offset + size]), MIB)


def test_partitions_are_in_the_order_of_the_disk_with_their_numbers() -> None:
    """The table may have another order."""
    partitions = disk_of([(8, 16), (1, 8)]).partitions
    assert [(2, 512), (1, 8 * 512)] == [(partition.number, partition.volume.start_bytes) for partition in partitions]


def test_ranges_of_a_volume_in_pieces() -> None:
    """Each part of a range is at the place of its piece on the disk."""
    volume = Volume("home", ((1000, 10), (2000, 20), (3000, 5)), lambda _, size: bytes(size))
    assert [(1000, 1010), (2000, 2020), (3000, 3005)] == volume.on_disk([(0, 35)])
    assert [(1008, 1010), (2000, 2001), (3002, 3004)] == volume.on_disk([(8, 11), (32, 34)])
    assert (35, 1000, 3005) == (volume.size_bytes, volume.start_bytes, volume.end_bytes)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with real file systems and every structure that kimbox reads."""
    madedisk.make(tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


def test_each_part_of_a_disk_is_read_once(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and LVM metadata are read once, file systems again after a write. Nothing is read before its first use."""
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
    """A view from before the write keeps its cached content."""
    with rawdisk.writable(disk) as raw:
        before = raw.view()
        label_at = before.root.start_bytes + 1024 + 0x78
        assert "kimbox-root" == before.root.file_system.label
        raw.write(label_at, b"other\0")
        assert "kimbox-root" == before.root.file_system.label
        assert "other" == before.reopened().root.file_system.label
        assert "other" == before.root.reopened().file_system.label


def test_debugfs_is_run_by_one_module() -> None:
    """No other module has the program in an argument, or commands of its scripts."""
    folder = paths.provisioners_dir().parent / "kimbox"
    modules = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and (node.value == "debugfs" or "set_inode_field" in str(node.value))
    }
    assert {"image/disk/debugfs.py"} == modules
