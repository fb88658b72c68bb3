"""Copies a disk without what is not in use: no guest, no root, no loop device, and no zeros written over free space.

`overlay` makes a new overlay on the same image, `flatten` a whole disk that stands alone. Both read the disk of a
machine that does not run, and write a new file; the old one stays as it is.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import HOLE_BYTES, sync_file
from kimbox.image.disk import inuse, ranges
from kimbox.image.disk.inuse import InUse
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.view import DiskView
from kimbox.image.formats import nbd

#: What QEMU allots at a time in a qcow2, unless told otherwise.
CLUSTER_BYTES = 64 << 10

#: So much is read, compared and written at a time; whole clusters.
PIECE_BYTES = nbd.PIECE_BYTES

Report = Callable[[int], None]

_ZEROS = bytes(HOLE_BYTES)


def examine(disk: Path, image_format: str, *, drop_snapshots: bool = False) -> InUse:
    """What of a disk is in use. Raises ImageError, naming the volume, where the disk is damaged."""
    with nbd.opened(disk, image_format) as source:
        return _find(source, drop_snapshots=drop_snapshots)


def overlay(
    disk: Path,
    base: Path,
    base_format: str,
    target: Path,
    *,
    drop_snapshots: bool = False,
    on_bytes: Report = lambda _: None,
) -> InUse:
    """Makes `target`, an overlay on `base` with all that is in use in the qcow2 overlay `disk`, and no more.

    What is not in use reads as it does in `base`, or as zeros. With `drop_snapshots` every LVM snapshot in it is empty
    afterwards. `on_bytes` is told how much of the disk is done. Raises ImageError, and leaves no `target`, where the
    disk is damaged.
    """
    mine = nbd.content(disk, "qcow2").own
    with nbd.opened(disk, "qcow2") as source, nbd.opened(base, base_format) as below:
        found = _find(source, drop_snapshots=drop_snapshots)
        touched = ranges.merged([*ranges.common(found.used, mine), *found.zeros])
        kept = ranges.without(found.used, found.zeros)
        try:
            size = str(source.size_bytes)
            run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", base_format, target, size])
            with nbd.opened(target, "qcow2", writable=True) as new:
                for start, end in _pieces(ranges.aligned(touched, CLUSTER_BYTES), source.size_bytes):
                    data = _blanked(source.read(start, end - start), start, kept)
                    stop = max(start, min(end, below.size_bytes))
                    old = _blanked(below.read(start, stop - start).ljust(end - start, b"\0"), start, found.used)
                    for at, stop in _differing(data, old):
                        new.write(start + at, data[at:stop])
                    on_bytes(end)
                new.flush()
            sync_file(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return found


def flatten(
    disk: Path, image_format: str, target: Path, *, drop_snapshots: bool = False, on_bytes: Report = lambda _: None
) -> InUse:
    """Makes `target`, a sparse raw disk with all that is in use in `disk`, and zeros for all else.

    The same content gives the same bytes. `drop_snapshots`, `on_bytes` and errors are as those of `overlay`.
    """
    data = nbd.content(disk, image_format).data
    with nbd.opened(disk, image_format) as source:
        found = _find(source, drop_snapshots=drop_snapshots)
        kept = ranges.without(found.used, found.zeros)
        try:
            with target.open("xb") as new:
                for start, end in _pieces(ranges.aligned(ranges.common(kept, data), HOLE_BYTES), source.size_bytes):
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
    return found


def _find(source: nbd.Disk, *, drop_snapshots: bool) -> InUse:
    try:
        return inuse.find(DiskView.of(source.read, source.size_bytes), drop_snapshots=drop_snapshots)
    except ImageError as error:
        hint = "boot the box and mend it there (`e2fsck`, `vgck`); the disk was not touched"
        raise ImageError(f"the disk cannot be read safely: {error.message}", hint=error.hint or hint) from None


def _pieces(wanted: Ranges, size_bytes: int) -> Iterator[tuple[int, int]]:
    """The set in pieces that are read at a time; none reaches beyond the disk."""
    for start, end in wanted:
        for at in range(start, min(end, size_bytes), PIECE_BYTES):
            yield at, min(at + PIECE_BYTES, end, size_bytes)


def _blanked(data: bytes, start: int, kept: Ranges) -> bytes:
    """What was read at `start`, with zeros for all that is not in the set."""
    whole = [(start, start + len(data))]
    gone = ranges.without(whole, _near(kept, start, start + len(data)))
    if not gone:
        return data
    blank = bytearray(data)
    for first, end in gone:
        blank[first - start : end - start] = bytes(end - first)
    return bytes(blank)


def _near(pieces: Ranges, start: int, end: int) -> Ranges:
    """The part of a sorted set that may touch (start, end)."""
    first = bisect_right(pieces, start, key=lambda piece: piece[1])
    return pieces[first : bisect_left(pieces, end, key=lambda piece: piece[0])]


def _differing(data: bytes, old: bytes) -> Ranges:
    """Whole clusters in which the two differ."""
    if data == old:
        return []
    return ranges.merged(
        (at, min(at + CLUSTER_BYTES, len(data)))
        for at in range(0, len(data), CLUSTER_BYTES)
        if data[at : at + CLUSTER_BYTES] != old[at : at + CLUSTER_BYTES]
    )
