"""The chunks of a disk that differ from its base. Only what the overlays have of their own is read."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from kimbox.image.disk import nbd, ranges
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ranges import Ranges
from kimbox.image.saves.index import CHUNK_BYTES, length_of
from kimbox.image.saves.private import Cleaned
from kimbox.sparse import data_ranges

#: Number of a chunk, and its bytes.
Numbered = tuple[int, bytes]


def own_ranges(overlays: list[Path]) -> Ranges:
    """Returns the byte ranges that a chain of qcow2 overlays stores itself. The image below is not among `overlays`."""
    return ranges.merged(piece for overlay in overlays for piece in nbd.content(overlay, "qcow2").own)


def changed(
    disk: Cleaned, own: Ranges, base: Read, base_bytes: int, on_bytes: Callable[[int], None]
) -> Iterator[Numbered]:
    """Yields the chunks of a disk that differ from its base, in ascending order.

    `own`: the ranges in which they may differ. Bytes that are not in use have the value of the base, so that a save
    has no content of removed files. Beyond the end of the base there are zeros. `on_bytes` gets the number of bytes of
    the disk that are done.
    """
    kept = ranges.without(disk.in_use.used, disk.in_use.zeros)
    candidates = ranges.merged(
        [*ranges.common(disk.in_use.used, ranges.merged([*own, *disk.changed])), *disk.in_use.zeros]
    )
    for first, last in ranges.aligned(candidates, CHUNK_BYTES):
        for start in range(first, min(last, disk.size_bytes), CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, disk.size_bytes)
            old_end = max(start, min(end, base_bytes))
            old = base(start, old_end - start).ljust(end - start, b"\0")
            new = bytearray(disk.read(start, end - start))
            for at, stop in ranges.without([(start, end)], _near(kept, start, end)):
                new[at - start : stop - start] = old[at - start : stop - start]
            for at, stop in ranges.common([(start, end)], disk.in_use.zeros):
                new[at - start : stop - start] = bytes(stop - at)
            if new != old:
                yield start // CHUNK_BYTES, bytes(new)
            on_bytes(end)


def of_file(path: Path, on_bytes: Callable[[int], None]) -> Iterator[Numbered]:
    """Yields the chunks of a file that are not all zeros, in ascending order."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for first, last in ranges.aligned(list(data_ranges(file.fileno())), CHUNK_BYTES):
            for start in range(first, min(last, size), CHUNK_BYTES):
                data = os.pread(file.fileno(), length_of(start // CHUNK_BYTES, size), start)
                if data.strip(b"\0"):
                    yield start // CHUNK_BYTES, data
                on_bytes(start + len(data))


def _near(pieces: Ranges, start: int, end: int) -> Ranges:
    """The part of sorted ranges that may overlap (start, end)."""
    first = bisect_right(pieces, start, key=lambda piece: piece[1])
    return pieces[first : bisect_left(pieces, end, key=lambda piece: piece[0])]
