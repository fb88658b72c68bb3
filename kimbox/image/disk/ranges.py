"""Sets of bytes of a disk, as sorted pieces (start, end) that neither overlap nor touch. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

Range = tuple[int, int]
Ranges = list[Range]


def merged(pieces: Iterable[Range]) -> Ranges:
    """Returns pieces in any order as a set. Empty pieces are left out."""
    result: Ranges = []
    for start, end in sorted(pieces):
        if start >= end:
            continue
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], end)
        else:
            result.append((start, end))
    return result


def common(left: Ranges, right: Ranges) -> Ranges:
    """Returns the bytes that are in both sets."""
    result: Ranges = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            result.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return result


def without(pieces: Ranges, excluded: Ranges) -> Ranges:
    """Returns the bytes that are in the first set and not in the second."""
    if not pieces:
        return []
    last_end = max(pieces[-1][1], excluded[-1][1] if excluded else 0)
    edges = [(pieces[0][0], pieces[0][0]), *excluded, (last_end, last_end)]
    return common(pieces, merged((before[1], after[0]) for before, after in pairwise(edges)))


def shifted(pieces: Iterable[Range], by: int) -> Iterator[Range]:
    """Yields the pieces with `by` added to each start and end."""
    return ((start + by, end + by) for start, end in pieces)


def aligned(pieces: Ranges, unit: int) -> Ranges:
    """Returns the set of all units of `unit` bytes that contain a byte of the pieces."""
    return merged((start // unit * unit, -(-end // unit) * unit) for start, end in pieces)


def size(pieces: Iterable[Range]) -> int:
    """Returns the number of bytes in a set."""
    return sum(end - start for start, end in pieces)
