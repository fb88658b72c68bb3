"""Brings the disk of a halted machine back to the state before its first boot, with what its maintainer changed.

`root` and `/boot` stay, without traces of the machine; everything else (LVM, an empty snapshot, swap, /persistent) is
taken from the image that the machine was made from, so that no secret of /persistent can stay by oversight. The content
of removed files goes with all bytes that are not in use.
"""

from __future__ import annotations

from pathlib import Path

from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES
from kimbox.image.disk import grubenv, ranges, rawdisk
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.rawdisk import RawDisk
from kimbox.image.disk.view import DiskView, Volume
from kimbox.image.sanitize import apply, traces


def restore(path: Path, image: Path) -> list[str]:
    """Brings `path`, a raw copy of a halted machine's disk, back to the first state; `image` is its raw image.

    Returns what was removed or reset. Raises ImageError where the two differ in layout or a file system is damaged.
    """
    with rawdisk.writable(path) as disk, rawdisk.opened(image) as built:
        kept = [_range_of(volume) for volume in _same_places(disk.view(), built)]
        disk.resize(built.size_bytes)  # a spec may give a machine more than its image has
        _take_rest(disk, built, kept)
        now = disk.view()  # LVM's metadata is the image's now
        for volume, name in ((now.boot, "/boot"), (now.root, "root")):
            apply.repair(disk, volume, name)
        _restore_grubenv(disk, now, built)
        done = _clean(disk, now, built)
        apply.repair(disk, now.root, "root")
        apply.drop_unused(disk, now.reopened())
    return done


def _same_places(disk: DiskView, built: DiskView) -> tuple[Volume, Volume]:
    """/boot and root of a disk. Raises ImageError if they lie elsewhere than in its image."""
    if (disk.boot.pieces, disk.root.pieces) != (built.boot.pieces, built.root.pieces):
        raise ImageError(
            "/boot or root of the machine lies elsewhere than in its image: it was moved or resized",
            hint="`kimbox package --image` packages the image; a volume's size is for the spec to say",
        )
    return disk.boot, disk.root


def _range_of(volume: Volume) -> tuple[int, int]:
    return volume.start_bytes, volume.end_bytes


def _take_rest(disk: RawDisk, built: DiskView, kept: Ranges) -> None:
    """Replaces everything but the byte ranges that are kept with what the image has there."""
    gaps = ranges.without([(0, built.size_bytes)], ranges.merged(kept))
    data = built.written()
    for first, last in gaps:
        disk.blank(first, last)
        for start, end in ranges.common([(first, last)], data):
            for at in range(start, end, CHUNK_BYTES):
                disk.write(at, built.read(at, min(CHUNK_BYTES, end - at)))


def _restore_grubenv(disk: RawDisk, now: DiskView, built: DiskView) -> None:
    """The boot mode as the image has it."""
    disk.write(grubenv.place(now.boot), built.read(grubenv.place(built.boot), grubenv.BLOCK_BYTES))


def _clean(disk: RawDisk, now: DiskView, built: DiskView) -> list[str]:
    """Removes and resets the traces of a machine. Returns the paths, escaped by `shown`.

    `apply.repair` has to follow.
    """
    system, original = now.root.file_system, built.root.file_system
    gone = traces.find(system, original)
    reset, replaced = traces.differing(system, original)
    return apply.change_root(disk, now.root, gone + replaced, reset)
