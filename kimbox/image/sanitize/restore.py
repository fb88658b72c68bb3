"""Restores the disk of a halted machine to the state before its first boot, and keeps its maintainer's changes.

kimbox keeps the volumes `root` and `/boot` and removes the traces of the machine from root, and the kernels of its
snapshot from /boot. It replaces everything else (LVM metadata, snapshot, swap, /persistent) with the data of the
machine's image, so that no secret of /persistent can stay. It zeroes all unused bytes, and with them the content of
removed files.
"""

from __future__ import annotations

from pathlib import Path

from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES
from kimbox.image.disk import grubenv, ranges, rawdisk
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.rawdisk import RawDisk
from kimbox.image.disk.view import DiskView, Volume
from kimbox.image.sanitize import apply, kernels, traces


def restore(path: Path, image: Path) -> list[str]:
    """Restores `path`, a raw copy of the disk of a halted machine. `image` is the raw disk of its image.

    Returns the paths that were removed or reset. Raises ImageError if the two have different layouts, or if a file
    system is damaged.
    """
    with rawdisk.writable(path) as disk, rawdisk.opened(image) as built:
        kept = [_range_of(volume) for volume in _kept_volumes(disk.view(), built)]
        disk.resize(built.size_bytes)  # a spec may give a machine a larger disk than its image
        _replace_others(disk, built, kept)
        view = disk.view()  # the LVM metadata is new
        for volume, name in ((view.boot, "/boot"), (view.root, "root")):
            apply.repair(disk, volume, name)
        _restore_grubenv(disk, view, built)
        left = kernels.left_entries(view.boot.file_system, view.root.file_system)
        apply.remove(disk, view.boot, left)
        cleaned = [f"/boot{shown(entry.path)}" for entry in left] + _clean(disk, view, built)
        for volume, name in ((view.boot, "/boot"), (view.root, "root")) if left else ((view.root, "root"),):
            apply.repair(disk, volume, name)
        apply.drop_unused(disk, view.reopened())
    return sorted(cleaned)


def _kept_volumes(disk: DiskView, built: DiskView) -> tuple[Volume, Volume]:
    """/boot and root of a disk. Raises ImageError if they have another place or size than in the image."""
    places = disk.boot.pieces, disk.root.pieces
    if places != (built.boot.pieces, built.root.pieces) or len(built.root.pieces) != 1:
        raise ImageError(
            "/boot or root of the machine has another place or size than in its image: the volume was moved or resized",
            code="volume-moved",
            hint="`kimbox package --image` packages the image; set the size of a volume in the spec",
        )
    return disk.boot, disk.root


def _range_of(volume: Volume) -> tuple[int, int]:
    """Start and end of a volume on the disk, in bytes."""
    return volume.start_bytes, volume.end_bytes


def _replace_others(disk: RawDisk, built: DiskView, kept: Ranges) -> None:
    """Replaces all bytes outside the ranges `kept` with the bytes of the image at the same place."""
    gaps = ranges.without([(0, built.size_bytes)], ranges.merged(kept))
    data = built.written()
    for first, last in gaps:
        disk.blank(first, last)
        for start, end in ranges.common([(first, last)], data):
            for at in range(start, end, CHUNK_BYTES):
                disk.write(at, built.read(at, min(CHUNK_BYTES, end - at)))


def _restore_grubenv(disk: RawDisk, view: DiskView, built: DiskView) -> None:
    """Sets the boot mode to that of the image."""
    disk.write(grubenv.place(view.boot), built.read(grubenv.place(built.boot), grubenv.BLOCK_BYTES))


def _clean(disk: RawDisk, view: DiskView, built: DiskView) -> list[str]:
    """Removes and resets the traces of a machine in its root. Returns the paths, escaped by `shown`.

    The caller must call `apply.repair` next.
    """
    system, built_system = view.root.file_system, built.root.file_system
    removed = traces.machine_entries(system, built_system)
    reset, replaced = traces.changed_files(system, built_system)
    return apply.change_root(disk, view.root, removed + replaced, reset)
