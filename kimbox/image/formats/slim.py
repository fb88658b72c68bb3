"""Copies a disk without what is not in use: no guest, no root, no loop device, and no zeros written over free space.

`overlay` makes a new overlay on the same image, `flatten` a raw disk without a backing file. Both read the disk of a
machine that does not run and write a new file. The old file is not changed.
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

#: Default size of a cluster of a qcow2, in bytes.
CLUSTER_BYTES = 64 << 10

#: Size of the pieces that are read, compared and written, in bytes: whole clusters.
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

    Bytes that are not in use read as they do in `base`, or as zeros. With `drop_snapshots` every LVM snapshot in it is
    empty afterwards. `on_bytes` gets the number of bytes of the disk that are done. Raises ImageError, and leaves no
    `target`, if the disk is damaged.
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
    """The set in pieces of at most PIECE_BYTES; no piece extends beyond the disk."""
    for start, end in wanted:
        for at in range(start, min(end, size_bytes), PIECE_BYTES):
            yield at, min(at + PIECE_BYTES, end, size_bytes)


def _blanked(data: bytes, start: int, kept: Ranges) -> bytes:
    """The data that was read at `start`, with zeros for all bytes outside the set."""
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
