"""Sets of bytes of a disk, as sorted pieces (start, end) that neither overlap nor touch. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

Range = tuple[int, int]
Ranges = list[Range]


def merged(pieces: Iterable[Range]) -> Ranges:
    """Pieces in any order as a set; empty ones are left out."""
    found: Ranges = []
    for start, end in sorted(pieces):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def common(one: Ranges, two: Ranges) -> Ranges:
    """What is in both sets."""
    found: Ranges = []
    a = b = 0
    while a < len(one) and b < len(two):
        start, end = max(one[a][0], two[b][0]), min(one[a][1], two[b][1])
        if start < end:
            found.append((start, end))
        if one[a][1] < two[b][1]:
            a += 1
        else:
            b += 1
    return found


def without(one: Ranges, two: Ranges) -> Ranges:
    """What is in the first set and not in the second."""
    if not one:
        return []
    edges = [(one[0][0], one[0][0]), *two, (max(one[-1][1], two[-1][1] if two else 0),) * 2]
    return common(one, merged((left[1], right[0]) for left, right in pairwise(edges)))


def shifted(pieces: Iterable[Range], by: int) -> Iterator[Range]:
    """The same pieces elsewhere."""
    return ((start + by, end + by) for start, end in pieces)


def aligned(pieces: Ranges, unit: int) -> Ranges:
    """The set of whole units that the pieces touch."""
    return merged((start // unit * unit, -(-end // unit) * unit) for start, end in pieces)


def size(pieces: Iterable[Range]) -> int:
    """How many bytes are in a set."""
    return sum(end - start for start, end in pieces)
