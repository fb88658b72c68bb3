"""Changes to the file systems of a raw disk that nobody mounts: files removed, files written, free space made zeros.

Files are removed by kimbox's own code, by place and inode; e2fsck(8) then repairs bitmaps and counts. A name that a
guest chose is part of no command.
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

#: Time limit of e2fsck, in seconds.
TIMEOUT_S = 600.0

#: Takes the place of the clock in e2fsprogs; e2fsck has a variable of its own for it.
_FIXED_TIME = {"E2FSPROGS_FAKE_TIME": str(EPOCH_S), "E2FSCK_TIME": str(EPOCH_S)}


def repair(disk: RawDisk, volume: Volume, name: str) -> None:
    """Replays the journal of a file system, and repairs what e2fsck repairs without a question.

    What was read of the volume before is out of date then. `name` is for messages. Raises ImageError if the file system
    is damaged.
    """
    done = run.run(
        ["e2fsck", "-f", "-p", f"{disk.path.name}?offset={volume.start_bytes}"],
        check=False, cwd=disk.path.parent, env=_FIXED_TIME, timeout_s=TIMEOUT_S,
    )  # fmt: skip
    if done.code not in (0, 1):
        hint = "boot the machine and mend it there (`e2fsck`)"
        raise ImageError(f"the file system of {name} is damaged: {run.tail(done.stdout + done.stderr, 3)}", hint=hint)


def remove(disk: RawDisk, volume: Volume, entries: list[Entry]) -> None:
    """Removes entries of a file system. `repair` has to follow. Raises ImageError where an entry has changed."""
    start = volume.start_bytes
    removal.remove(volume.reopened().file_system, lambda offset, data: disk.write(start + offset, data), entries)


def change_root(disk: RawDisk, root: Volume, gone: list[Entry], reset: Mapping[str, bytes]) -> list[str]:
    """Removes entries of a root file system and writes files of AS_BUILT. Returns the paths, escaped by `shown`.

    A file that is written must be among those that are removed, or must not exist. `repair` has to follow. Raises
    ImageError where that fails.
    """
    remove(disk, root, gone)
    folder = directories.find(root.reopened().file_system, b"/etc")
    if reset:
        if folder is None or not folder.inode.is_folder:
            raise ImageError("the root of the machine has no folder /etc", hint="put it back in the box")
        repair(disk, root, "root")
        files = {name: NewFile(data, AS_BUILT[name]) for name, data in reset.items()}
        debugfs.write_files(disk.path, root.start_bytes, folder.inode.number, files, _FIXED_TIME)
    return sorted({*(shown(entry.path) for entry in gone), *(f"/etc/{name}" for name in reset)})


def drop_unused(disk: RawDisk, view: DiskView) -> None:
    """Makes all bytes of a disk zeros that are not in use, and its snapshots empty. Raises ImageError for damage."""
    found = inuse.find(view, drop_snapshots=True)
    for start, end in ranges.without([(0, view.size_bytes)], ranges.without(found.used, found.zeros)):
        disk.blank(start, end)
