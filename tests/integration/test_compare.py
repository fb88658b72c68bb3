"""Differences between two disks: in a part of the layout, in the content of a file, in an inode."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
import tinyimage

from kimbox import run
from kimbox.image import namespace
from kimbox.image.build import disk
from kimbox.image.disk import compare
from kimbox.image.disk.compare import Difference
from kimbox.image.inputs.recipe import EPOCH_S
from kimbox.spec.layout import Extent

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="cannot build here")

PLAN = tinyimage.tiny_recipe()
LAYOUT = PLAN.layout


#: Changes to the tree of the tiny image.
CHANGE = """
head -c 9000 /dev/zero | tr '\\0' A >root/etc/hostname
ln -sf hostname root/etc/link
echo new >root/etc/new
chmod 0600 root/etc/shadow
chgrp 43 root/etc/shadow
rm -r root/home/user
echo file >root/home/user
chown 1000:1000 root/home/user
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny disk that kimbox assembled."""
    work = tmp_path_factory.mktemp("made")
    tinyimage.fill(PLAN, work, on_line=lambda _: None, log=(work / "log").open("w"))
    disk.assemble(PLAN, work, work / "disk.raw")
    return work / "disk.raw"


@pytest.fixture
def other(made: Path, tmp_path: Path) -> Path:
    """A copy of the tiny disk."""
    return Path(shutil.copy(made, tmp_path / "other.raw"))


def debugfs(device: Path, place: Extent, *requests: str) -> str:
    """Changes or reads a file system on a disk."""
    where = f"{device}?offset={place.offset_bytes}"
    return "".join(run.run(["debugfs", "-w", "-R", request, where]).stdout for request in requests)


def test_equal_disks_do_not_differ(made: Path, other: Path) -> None:
    """Holes count as zeros: a copy without holes is equal."""
    assert [] == compare.compare(made, other, LAYOUT)
    with other.open("r+b") as file:
        file.seek(LAYOUT.size_bytes - 8192)
        file.write(bytes(8192))
    assert [] == compare.compare(made, other, LAYOUT)
    assert hashlib.sha256(made.read_bytes()).hexdigest() == compare.sha256_disk(made) == compare.sha256_disk(other)


@pytest.mark.parametrize(
    ("offset", "part"),
    [
        (440, "partition table and boot loader"),
        (LAYOUT.pv.offset_bytes + 5000, "LVM label and metadata"),
        (LAYOUT.volumes[2].place.offset_bytes, "LV swap"),
        (LAYOUT.size_bytes - 1, "the rest of the disk"),
    ],
)
def test_parts_of_the_layout_are_named(made: Path, other: Path, offset: int, part: str) -> None:
    """One changed byte is found anywhere on the disk. The result names its part."""
    with other.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    assert [Difference(part, 1)] == compare.compare(made, other, LAYOUT)
    assert compare.sha256_disk(made) != compare.sha256_disk(other)


def test_files_are_named(made: Path, other: Path) -> None:
    """The result has the aspects in which each file differs. Times that no file shows are those of an inode."""
    root = LAYOUT.root.place
    debugfs(other, root, "set_inode_field /etc/hostname ctime @5")
    (difference,) = compare.compare(made, other, LAYOUT)
    expected = (f"LV {LAYOUT.root.name}", 1, {}, ("/etc/hostname (inode)",))
    assert expected == (difference.part, difference.blocks, difference.files, difference.paths)
    debugfs(other, root, "set_inode_field /etc/hostname mtime @5")
    block = int(re.findall(r"\d+", debugfs(other, root, "blocks /home/user/file"))[0])
    with other.open("r+b") as file:
        file.seek(root.offset_bytes + block * compare.BLOCK_BYTES)
        file.write(b"HELLO")
    (difference,) = compare.compare(made, other, LAYOUT)
    assert {"/etc/hostname": ("time",), "/home/user/file": ("content",)} == difference.files
    assert ["LV root: 2 blocks of 4096 bytes differ", "  /etc/hostname (time)"] == difference.lines()[:2]


def test_files_are_compared_wherever_they_are(made: Path, tmp_path: Path) -> None:
    """Another owner, mode, target or attribute, a new file and a larger file are named. No other file is."""
    tinyimage.fill(PLAN, tmp_path, on_line=lambda _: None, log=(tmp_path / "log").open("w"))
    namespace.call(["sh", "-c", CHANGE], cwd=tmp_path)
    disk.assemble(PLAN, tmp_path, tmp_path / "disk.raw")
    (difference,) = compare.compare(made, tmp_path / "disk.raw", LAYOUT)
    assert {
        "/etc/hostname": ("time", "content"),
        "/etc/link": ("content",),
        "/etc/new": ("presence",),
        "/etc/shadow": ("owner", "mode"),
        "/home/user": ("type",),
        "/home/user/file": ("presence",),
    } == difference.files


def test_capabilities_of_a_file_are_compared(made: Path, other: Path) -> None:
    """They are extended attributes."""
    debugfs(other, LAYOUT.root.place, "ea_set /home/user/file user.kind new")
    (difference,) = compare.compare(made, other, LAYOUT)
    assert {"/home/user/file": ("attributes",)} == difference.files


def test_a_damaged_file_system_is_no_list_of_files(made: Path, other: Path) -> None:
    """The difference is reported, and `files` is empty: nothing can be expected of it."""
    with other.open("r+b") as file:
        file.seek(LAYOUT.root.place.offset_bytes + 1024)
        file.write(bytes(200))
    (difference,) = compare.compare(made, other, LAYOUT)
    assert {} == difference.files


def test_a_shorter_disk_differs(made: Path, other: Path) -> None:
    """Although all of its bytes are equal."""
    with other.open("r+b") as file:
        file.truncate(LAYOUT.size_bytes - compare.BLOCK_BYTES)
    assert [Difference("the rest of the disk", 1)] == compare.compare(made, other, LAYOUT)


def test_no_inode_has_the_time_of_the_build(made: Path) -> None:
    """All times are those of the packages or the fixed one, so that a later build gives the same disk."""
    for place in (LAYOUT.root.place, LAYOUT.boot, LAYOUT.persistent.place):
        superblock = run.run(["dumpe2fs", f"{made}?offset={place.offset_bytes}"]).stdout
        assert "Filesystem created:       Wed Jan  1 00:00:00 2025" in superblock
        for inode in range(11, 24):
            times = re.findall(r"[acm]time: 0x([0-9a-f]{8})", debugfs(made, place, f"stat <{inode}>"))
            assert {t for t in times if int(t, 16) > EPOCH_S} == set(), (place.name, inode)
