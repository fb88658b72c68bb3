"""The layout of a new ext2 file system."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimbox.image.disk.ext2 import geometry
from kimbox.image.disk.ext2.tree import table_blocks
from kimbox.image.disk.ext2.writer import block_map


@given(
    block_bytes=st.sampled_from([1024, 4096]),
    need_blocks=st.one_of(st.integers(1, 400), st.integers(1, 300_000)),
    used_inodes=st.one_of(st.integers(12, 100), st.integers(12, 40_000)),
)
def test_the_smallest_layout_is_the_smallest(block_bytes: int, need_blocks: int, used_inodes: int) -> None:
    """It has room for the blocks and the inodes, and no layout with a block less has."""
    place = geometry.fitting(block_bytes, need_blocks, used_inodes)
    assert place.data_blocks >= need_blocks
    assert used_inodes < place.inodes
    smaller = geometry.geometry(block_bytes, place.blocks - 1, used_inodes)
    assert smaller is None or smaller.data_blocks < need_blocks


@given(block_bytes=st.sampled_from([1024, 4096]), blocks=st.integers(100, 2_000_000))
def test_the_data_blocks_are_those_of_all_groups(block_bytes: int, blocks: int) -> None:
    """The number follows from the places of the groups, and each group has its metadata before its data."""
    place = geometry.geometry(block_bytes, blocks, 12)
    if place is None:
        assert blocks < 200
        return
    rows = [(place.start(group), place.data(group), place.end(group)) for group in range(place.groups)]
    assert place.data_blocks == sum(end - data for _, data, end in rows)
    assert all(start < data < end for start, data, end in rows)


@pytest.mark.parametrize(("group", "expected"), [(0, True), (1, True), (2, False), (9, True), (15, False), (343, True)])
def test_few_groups_have_a_copy_of_the_superblock(group: int, expected: bool) -> None:
    """0, 1 and the powers of 3, 5 and 7."""
    assert expected == geometry.has_copy(group)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 300)), max_size=20),
    st.sampled_from([4, 7, 256]),
)
def test_the_number_of_tables_is_known_before(gaps: list[tuple[int, int]], per_table: int) -> None:
    """`table_blocks` counts what `block_map` writes, for files with holes, up to the third level."""
    runs, at, end = [], 0, 12 + per_table + per_table**2 + per_table**3
    for gap, count in gaps:
        at += gap + 1
        if at + count >= end:
            break
        runs.append((at, count))
        at += count
    blocks = iter(range(10_000, 10_000_000))
    _, tables = block_map([(first, count, 5000) for first, count in runs], per_table, lambda: next(blocks))
    assert len(tables) == table_blocks(runs, per_table)
