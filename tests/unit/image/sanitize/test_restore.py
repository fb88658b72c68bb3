"""Which volume of a disk is root, whatever snapshots a user has made beside kimbox's."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import ImageError
from kimbox.image.disk import volumes
from kimbox.image.disk.lvm.reader import Group, Segment, Snapshot, Volume
from kimbox.image.sanitize import restore

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
    assert Segment(0, MIB, START) == restore._root(group(snapshots))


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
        restore._root(group(snapshots, pieces=pieces))


def test_the_volumes_of_a_disk_with_more_snapshots_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them a box would run on is not known; it is no traceback."""
    monkeypatch.setattr(volumes.inuse, "partitions", lambda *_: [(0, MIB), (MIB, 200 * MIB)])
    monkeypatch.setattr(volumes.reader, "read_group", lambda *_: group({"snap": "root", "mine": "root"}))
    (tmp_path / "disk").touch()
    with (tmp_path / "disk").open("rb") as disk, pytest.raises(ImageError, match="more snapshots than the one of root"):
        volumes._find(disk.fileno(), restore.Places((0, MIB), (START, MIB)))
