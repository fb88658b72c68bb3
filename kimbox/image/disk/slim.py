"""Copies the bytes of a disk that are in use. This needs no guest, no root and no loop device.

`overlay` creates a new overlay on the same image, `flatten` a raw disk without a backing file. Both read the disk of a
machine that is not running, and write a new file. They do not change the old file, not even with zeros in free space.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import sync_file
from kimbox.image.disk import inuse, nbd, ranges
from kimbox.image.disk.inuse import InUse
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.view import DiskView
from kimbox.sparse import HOLE_BYTES

#: Default size of a qcow2 cluster, in bytes.
CLUSTER_BYTES = 64 << 10

#: Size of the pieces that are read, compared and written, in bytes: a multiple of CLUSTER_BYTES.
PIECE_BYTES = nbd.PIECE_BYTES

#: Gets the number of bytes of the disk that are done.
Report = Callable[[int], None]

_ZEROS = bytes(HOLE_BYTES)


def examine(disk: Path, image_format: str, *, drop_snapshots: bool = False) -> InUse:
    """Returns which bytes of a disk are in use. Raises ImageError, with the name of the volume, for a damaged disk."""
    with nbd.opened(disk, image_format) as source:
        return _in_use(source, drop_snapshots=drop_snapshots)


def overlay(
    disk: Path,
    base: Path,
    base_format: str,
    target: Path,
    *,
    drop_snapshots: bool = False,
    on_bytes: Report = lambda _: None,
) -> InUse:
    """Creates `target`, an overlay on `base` with only those bytes of the qcow2 overlay `disk` that are in use.

    Unused bytes have the value of `base`, or are zero. With `drop_snapshots` every LVM snapshot is empty in `target`.
    Raises ImageError, and leaves no `target`, if the disk is damaged.
    """
    overlay_ranges = nbd.content(disk, "qcow2").own
    with nbd.opened(disk, "qcow2") as source, nbd.opened(base, base_format) as backing:
        in_use = _in_use(source, drop_snapshots=drop_snapshots)
        written = ranges.merged([*ranges.common(in_use.used, overlay_ranges), *in_use.zeros])
        kept = ranges.without(in_use.used, in_use.zeros)
        try:
            size = str(source.size_bytes)
            run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", base_format, target, size])
            with nbd.opened(target, "qcow2", writable=True) as new:
                for start, end in pieces(ranges.aligned(written, CLUSTER_BYTES), source.size_bytes):
                    data = _blanked(source.read(start, end - start), start, kept)
                    backing_end = max(start, min(end, backing.size_bytes))
                    backing_data = backing.read(start, backing_end - start).ljust(end - start, b"\0")
                    old = _blanked(backing_data, start, in_use.used)
                    for at, stop in differing(data, old):
                        new.write(start + at, data[at:stop])
                    on_bytes(end)
                new.flush()
            sync_file(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return in_use


def flatten(
    disk: Path, image_format: str, target: Path, *, drop_snapshots: bool = False, on_bytes: Report = lambda _: None
) -> InUse:
    """Creates `target`, a sparse raw disk with the bytes of `disk` that are in use. All other bytes are zero.

    Equal content gives equal bytes. `drop_snapshots`, `on_bytes` and the errors are those of `overlay`. With
    `drop_snapshots`, `target` has no kept root either: it is made from the snapshot.
    """
    data = nbd.content(disk, image_format).data
    with nbd.opened(disk, image_format) as source:
        in_use = _in_use(source, drop_snapshots=drop_snapshots, drop_kept=drop_snapshots)
        kept = ranges.without(in_use.used, in_use.zeros)
        try:
            with target.open("xb") as new:
                for start, end in pieces(ranges.aligned(ranges.common(kept, data), HOLE_BYTES), source.size_bytes):
                    piece = _blanked(source.read(start, end - start), start, kept)
                    for at in range(0, len(piece), HOLE_BYTES):
                        block = piece[at : at + HOLE_BYTES]
                        if block != _ZEROS[: len(block)]:
                            os.pwrite(new.fileno(), block, start + at)
                    on_bytes(end)
                new.truncate(source.size_bytes)
                os.fsync(new.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return in_use


def _in_use(source: nbd.Disk, *, drop_snapshots: bool, drop_kept: bool = False) -> InUse:
    """Which bytes are in use. Raises ImageError, with a hint, for a damaged disk."""
    try:
        view = DiskView.of(source.read, source.size_bytes)
        return inuse.find(view, drop_snapshots=drop_snapshots, drop_kept=drop_kept)
    except ImageError as error:
        hint = "boot the box, and repair the disk in it with `e2fsck` or `vgck`; kimbox did not change the disk"
        raise ImageError(
            f"the disk cannot be read safely: {error.message}",
            code=error.code,
            hint=error.hint or hint,
            fields=error.fields,
        ) from None


def pieces(parts: Ranges, size_bytes: int) -> Iterator[tuple[int, int]]:
    """The ranges in pieces of at most PIECE_BYTES. No piece extends beyond the disk."""
    for start, end in parts:
        for at in range(start, min(end, size_bytes), PIECE_BYTES):
            yield at, min(at + PIECE_BYTES, end, size_bytes)


def _blanked(data: bytes, start: int, kept: Ranges) -> bytes:
    """Data that was read at the offset `start`, with zeros for all bytes outside the ranges `kept`."""
    data_range = [(start, start + len(data))]
    dropped = ranges.without(data_range, _near(kept, start, start + len(data)))
    if not dropped:
        return data
    blanked = bytearray(data)
    for first, end in dropped:
        blanked[first - start : end - start] = bytes(end - first)
    return bytes(blanked)


def _near(pieces: Ranges, start: int, end: int) -> Ranges:
    """The part of sorted ranges that may overlap (start, end)."""
    first = bisect_right(pieces, start, key=lambda piece: piece[1])
    return pieces[first : bisect_left(pieces, end, key=lambda piece: piece[0])]


def differing(data: bytes, old: bytes) -> Ranges:
    """Ranges of whole clusters in which the two differ, relative to their start."""
    if data == old:
        return []
    return ranges.merged(
        (at, min(at + CLUSTER_BYTES, len(data)))
        for at in range(0, len(data), CLUSTER_BYTES)
        if data[at : at + CLUSTER_BYTES] != old[at : at + CLUSTER_BYTES]
    )
