"""Which volume of a disk is root, whatever snapshots a user has made beside kimbox's."""

from __future__ import annotations

import pytest

from kimbox.errors import ImageError
from kimbox.image import cleaned
from kimbox.image.lvmread import Group, Segment, Snapshot, Volume

START, MIB = 1 << 20, 1 << 20


def group(snapshots: dict[str, str], *, pieces: int = 1) -> Group:
    """A group in which root lies first, in so many pieces, and home behind it; `snapshots` by their stores."""
    root = tuple(Segment(i * MIB, MIB, START + 2 * i * MIB) for i in range(pieces))
    volumes = {"root": Volume("root", root), "home": Volume("home", (Segment(0, MIB, START + 20 * MIB),))}
    for number, store in enumerate(snapshots):
        volumes[store] = Volume(store, (Segment(0, MIB, START + (30 + number) * MIB),))
    made = tuple(Snapshot(store, origin, 4096) for store, origin in snapshots.items())
    return Group("vg", START, START + 100 * MIB, volumes, made)


@pytest.mark.parametrize(
    "snapshots", [{"snap": "root"}, {"snap": "root", "mine": "root"}, {"mine": "home", "snap": "root", "x": "home"}]
)
def test_root_is_what_has_a_snapshot_and_lies_first(snapshots: dict[str, str]) -> None:
    """More snapshots of root, and of other volumes, are no other layout."""
    assert Segment(0, MIB, START) == cleaned._root(group(snapshots))


@pytest.mark.parametrize(
    ("words", "snapshots", "pieces"),
    [
        ("it has no volume root with a snapshot", {}, 1),
        ("the volume root lies in 2 pieces", {"snap": "root"}, 2),
    ],
)
def test_a_disk_without_root_in_one_piece_is_refused(words: str, snapshots: dict[str, str], pieces: int) -> None:
    """Its files cannot be changed by their place then."""
    with pytest.raises(ImageError, match=words):
        cleaned._root(group(snapshots, pieces=pieces))
