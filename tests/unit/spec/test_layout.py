"""The layout of a disk: no parts overlap, all are aligned, and a full-size snapshot cannot overflow."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimbox.errors import ImageError
from kimbox.spec.layout import (
    ALIGN_BYTES,
    EXTENT_BYTES,
    MIB,
    MIN_KEPT_BYTES,
    PE_START_BYTES,
    SNAPSHOT_CHUNK_BYTES,
    dm_name,
    full_snapshot_bytes,
    kept_name,
    plan,
    shares,
)
from kimbox.spec.model import Disk, Volume

#: Every run has the same examples.
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)

sizes = st.integers(1, 16 << 30)
disks = st.builds(
    lambda size, boot, root, persistent, swap, snapshot: Disk(
        size_bytes=size,
        boot_bytes=boot,
        volume_group="vg",
        root=Volume("root", root),
        persistent=Volume("persistent", persistent),
        swap=Volume("swap", swap) if swap else None,
        snapshot=Volume("root_snap", snapshot),
    ),
    st.integers(1, 64 << 30), st.integers(1, 1 << 30), sizes, sizes, st.none() | sizes, st.none() | sizes,
)  # fmt: skip


def chunk_of_change(number: int) -> int:
    """Returns the position of the data of the n-th changed chunk (from 0), in chunks from the start of the store.

    Chunk 0 is the header. Then come groups: one chunk of metadata, and the chunks of data that it describes. Metadata
    has a record of 16 bytes for each chunk of data.
    """
    group = SNAPSHOT_CHUNK_BYTES // 16
    return 1 + (number // group) * (group + 1) + 1 + number % group


def chunk_of_next_metadata(changes: int) -> int:
    """Returns the metadata chunk that the kernel clears when a group is full (dm-snap-persistent.c, commit)."""
    group = SNAPSHOT_CHUNK_BYTES // 16
    return 1 + (changes // group) * (group + 1)


@quick
@given(st.integers(1, 2 << 40))
def test_a_full_snapshot_holds_a_change_of_every_chunk(origin_bytes: int) -> None:
    """The last change, and the metadata chunk that the kernel prepares after it, are inside the COW store."""
    changes = -(-origin_bytes // SNAPSHOT_CHUNK_BYTES)
    last = max(chunk_of_change(changes - 1), chunk_of_next_metadata(changes))
    size = full_snapshot_bytes(origin_bytes)
    assert size % EXTENT_BYTES == 0
    assert (last + 1) * SNAPSHOT_CHUNK_BYTES <= size


@quick
@given(st.integers(1, 2 << 40))
def test_a_full_snapshot_wastes_little(origin_bytes: int) -> None:
    """It is at most a thousandth and two extents larger than its origin."""
    assert full_snapshot_bytes(origin_bytes) <= origin_bytes + origin_bytes // 1000 + 2 * EXTENT_BYTES


@quick
@given(disks)
def test_nothing_overlaps_and_everything_is_aligned(disk: Disk) -> None:
    """Boot sectors, /boot, LVM's own area and the volumes follow one another inside the disk."""
    try:
        layout = plan(disk)
    except ImageError:
        return
    assert layout.size_bytes <= disk.size_bytes
    assert ALIGN_BYTES == layout.boot.offset_bytes
    assert layout.boot.end_bytes == layout.pv.offset_bytes
    assert layout.size_bytes == layout.pv.end_bytes
    assert 0 == layout.boot.end_bytes % ALIGN_BYTES
    end = layout.pv.offset_bytes + PE_START_BYTES
    for volume in layout.volumes:
        assert end == volume.place.offset_bytes
        assert volume.place.size_bytes == volume.extents * EXTENT_BYTES
        assert volume.place.offset_bytes == (
            layout.pv.offset_bytes + PE_START_BYTES + volume.first_extent * EXTENT_BYTES
        )
        end = volume.place.end_bytes
    assert end <= layout.pv.end_bytes
    assert sum(v.extents for v in layout.volumes) <= layout.pv_extents


@quick
@given(disks)
def test_every_part_has_the_size_of_the_spec(disk: Disk) -> None:
    """No part is smaller than in the spec. Only a snapshot may be smaller, if it cannot use the space."""
    try:
        layout = plan(disk)
    except ImageError:
        return
    assert layout.boot.size_bytes >= disk.boot_bytes
    assert layout.root.place.size_bytes >= (disk.root.size_bytes or 0)
    assert layout.persistent.place.size_bytes >= (disk.persistent.size_bytes or 0)
    assert (layout.swap is None) == (disk.swap is None)
    full = full_snapshot_bytes(layout.root.place.size_bytes)
    assert min(disk.snapshot.size_bytes or full, full) <= layout.snapshot.place.size_bytes <= full


@quick
@given(disks, st.integers(-2, 2))
def test_a_disk_fits_exactly_from_the_sum_of_its_shares(disk: Disk, off_by: int) -> None:
    """A disk below the sum in the check of the spec is refused. From this sum on, it has a layout."""
    parts = shares(disk)
    size = sum(parts.values()) + off_by
    exact = attrs.evolve(disk, size_bytes=size)
    if off_by < 0:
        with pytest.raises(ImageError) as caught:
            plan(exact)
        assert "disk-too-small" == caught.value.code
    else:
        assert parts["root"] == plan(exact).root.place.size_bytes


@quick
@given(disks)
def test_a_kept_root_gets_half_of_the_free_extents(disk: Disk) -> None:
    """It changes no other volume, and leaves the other half free. A snapshot that may fill has all of the room."""
    try:
        layout = plan(disk)
    except ImageError:
        return
    free_bytes = (layout.pv_extents - sum(v.extents for v in layout.volumes if v is not layout.kept)) * EXTENT_BYTES
    if layout.kept is None:
        room_bytes = min(free_bytes // 2, layout.snapshot.place.size_bytes)
        assert layout.snapshot_may_fill or room_bytes < MIN_KEPT_BYTES + EXTENT_BYTES
        return
    assert kept_name(layout.snapshot.name) == layout.kept.name
    assert not layout.snapshot_may_fill
    assert MIN_KEPT_BYTES <= layout.kept.place.size_bytes <= min(free_bytes // 2, layout.snapshot.place.size_bytes)
    without_room = plan(attrs.evolve(disk, size_bytes=sum(shares(disk).values())))
    assert without_room.kept is None
    assert without_room.volumes == layout.volumes[:-1]


def test_the_order_on_the_disk() -> None:
    """Root, persistent, swap and snapshot follow each other from 2 MiB after /boot."""
    four = 4 * MIB
    made = plan(Disk(64 * MIB, 8 * MIB, "vg", Volume("r", four), Volume("p", four), None, Volume("s", None)))
    places = [(v.name, v.place.offset_bytes // MIB, v.place.size_bytes // MIB) for v in made.volumes]
    assert [("r", 10, 4), ("p", 14, 4), ("s", 18, 8)] == places


@pytest.mark.parametrize(
    ("group", "volume", "expected"),
    [
        ("vagrant-pipeline", "root_snap", "vagrant--pipeline-root_snap"),
        ("vg", "a-b", "vg-a--b"),
        ("a--b", "c", "a----b-c"),
    ],
)
def test_device_mapper_names(group: str, volume: str, expected: str) -> None:
    """Hyphens are doubled, so that no two volumes share a name."""
    assert expected == dm_name(group, volume)
