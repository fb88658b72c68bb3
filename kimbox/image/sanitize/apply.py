"""Writes to the file systems of a raw disk that is not mounted: removes files, writes files, zeroes unused space.

kimbox removes a file itself, by its directory entry and inode. e2fsck(8) then repairs bitmaps and counts. No command
contains a name that a guest chose.
"""

from __future__ import annotations

from collections.abc import Mapping

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import debugfs, inuse, ranges
from kimbox.image.disk.debugfs import NewFile
from kimbox.image.disk.ext4 import directories, removal
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.rawdisk import RawDisk
from kimbox.image.disk.view import DiskView, Volume
from kimbox.image.inputs.recipe import EPOCH_S
from kimbox.image.sanitize.traces import AS_BUILT

#: Timeout of e2fsck, in seconds.
TIMEOUT_S = 600.0

#: The time that e2fsprogs writes instead of the clock's, so that equal disks give equal bytes. e2fsck reads a variable
#: of its own.
_FIXED_TIME = {"E2FSPROGS_FAKE_TIME": str(EPOCH_S), "E2FSCK_TIME": str(EPOCH_S)}


def repair(disk: RawDisk, volume: Volume, name: str) -> None:
    """Replays the journal of a file system, and repairs what e2fsck repairs without a question (`-p`).

    Data that was read from the volume before is out of date afterwards. `name` is for messages. Raises ImageError if
    the file system is damaged.
    """
    result = run.run(
        ["e2fsck", "-f", "-p", f"{disk.path.name}?offset={volume.start_bytes}"],
        check=False, cwd=disk.path.parent, env=_FIXED_TIME, timeout_s=TIMEOUT_S,
    )  # fmt: skip
    if result.code not in (0, 1):
        raise ImageError(
            f"the file system of {name} is damaged: {run.tail(result.stdout + result.stderr, 3)}",
            code="disk-damaged",
            hint="boot the machine, and repair the file system in it with `e2fsck`",
            fields={"fault": "e2fsck", "name": name},
        )


def remove(disk: RawDisk, volume: Volume, entries: list[Entry]) -> None:
    """Removes entries of a file system. The caller must call `repair` next.

    Raises ImageError if an entry has changed since it was read.
    """
    start = volume.start_bytes
    removal.remove(volume.reopened().file_system, lambda offset, data: disk.write(start + offset, data), entries)


def change_root(disk: RawDisk, root: Volume, removed: list[Entry], reset: Mapping[str, bytes]) -> list[str]:
    """Removes entries of a root file system, and writes files of AS_BUILT to /etc.

    Each file that is written must be in `removed` or must not exist. The caller must call `repair` next. Returns the
    paths of all these files, escaped by `shown`. Raises ImageError if a file cannot be removed or written.
    """
    remove(disk, root, removed)
    folder = directories.find(root.reopened().file_system, b"/etc")
    if reset:
        if folder is None or not folder.inode.is_folder:
            raise ImageError(
                "the root of the machine has no folder /etc",
                code="file-not-found",
                hint="restore /etc in the box",
                fields={"path": "/etc"},
            )
        repair(disk, root, "root")
        files = {name: NewFile(data, AS_BUILT[name]) for name, data in reset.items()}
        debugfs.write_files(disk.path, root.start_bytes, folder.inode.number, files, _FIXED_TIME)
    return sorted({*(shown(entry.path) for entry in removed), *(f"/etc/{name}" for name in reset)})


def drop_unused(disk: RawDisk, view: DiskView) -> None:
    """Zeroes all unused bytes of a disk, and empties its snapshots and its kept root.

    Raises ImageError if the disk is damaged.
    """
    in_use = inuse.find(view, drop_snapshots=True, drop_kept=True)
    for start, end in ranges.without([(0, view.size_bytes)], ranges.without(in_use.used, in_use.zeros)):
        disk.blank(start, end)
