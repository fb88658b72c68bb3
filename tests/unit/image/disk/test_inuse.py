"""Sets of bytes, LVM metadata and snapshot stores of a disk, intact and hostile. No program runs."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused
from tinyimage import DISK

from kimbox.errors import ImageError
from kimbox.image.disk import inuse, ranges
from kimbox.image.disk.cowstore import Store
from kimbox.image.disk.faults import UnknownUsage
from kimbox.image.disk.lvm import reader, writer
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.view import DiskView
from kimbox.spec.layout import PE_START_BYTES, SECTOR_BYTES, plan

LAYOUT = plan(DISK)
PV_BYTES = LAYOUT.pv.size_bytes
UNIT = 4096

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8).map(ranges.merged)


def members(byte_ranges: Ranges) -> set[int]:
    return {at for start, end in byte_ranges for at in range(start, end)}


@given(pieces, pieces)
def test_operations_on_ranges_match_those_of_sets(left: Ranges, right: Ranges) -> None:
    """Each operation has the same result as that of Python's sets. Its pieces are sorted and do not touch."""
    for result, expected in (
        (ranges.common(left, right), members(left) & members(right)),
        (ranges.without(left, right), members(left) - members(right)),
        (ranges.merged([*left, *right]), members(left) | members(right)),
    ):
        assert expected == members(result)
        assert all(before[1] < after[0] for before, after in pairwise(result))
    assert ranges.size(left) == len(members(left))


def pv(text: bytes | None = None, *, at: int = SECTOR_BYTES) -> bytearray:
    """Returns a PV of the layout, if given with another text at another place of its metadata area."""
    disk = bytearray(PE_START_BYTES)
    for offset, data in writer.pieces(LAYOUT, "seed", 0):
        disk[offset - LAYOUT.pv.offset_bytes : offset - LAYOUT.pv.offset_bytes + len(data)] = data
    if text is not None:
        start, size = writer.MDA_START_BYTES, writer.MDA_SIZE_BYTES
        first = text[: size - at]
        disk[start + at : start + at + len(first)] = first
        rest = text[len(first) :]
        disk[start + SECTOR_BYTES : start + SECTOR_BYTES + len(rest)] = rest
        struct.pack_into("<QQII", disk, start + 40, at, len(text), writer.crc(text), 0)
        struct.pack_into("<I", disk, start, writer.crc(bytes(disk[start + 4 : start + SECTOR_BYTES])))
    return disk


def group_of(disk: bytes) -> reader.Group:
    return reader.read_group(lambda offset, size: bytes(disk[offset : offset + size]), PV_BYTES)


TEXT = writer.metadata_text(LAYOUT, "seed", 0)


@pytest.mark.parametrize("at", [SECTOR_BYTES, 8 * SECTOR_BYTES, writer.MDA_SIZE_BYTES - 1000])
def test_metadata_is_read_at_each_place_in_the_area(at: int) -> None:
    """LVM writes each text after the previous one. At the end of the area, it continues at the start."""
    group = group_of(pv(TEXT.encode() + b"\0", at=at))
    assert LAYOUT.volume_group == group.name
    assert {v.name: (v.place.size_bytes, v.place.offset_bytes - LAYOUT.pv.offset_bytes) for v in LAYOUT.volumes} == {
        name: (volume.size_bytes, volume.segments[0].pv_offset_bytes) for name, volume in group.volumes.items()
    }
    (snapshot,) = group.snapshots
    assert ("root_snap", "root", 65536) == attrs.astuple(snapshot)


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ('type = "striped"', 'type = "thin-pool"', {"fault": "volume-type", "lv": "root", "type": "thin-pool"}),
        ('type = "striped"', 'type = "\x1b[31m"', {"fault": "volume-type", "lv": "root", "type": "unknown"}),
        ("stripe_count = 1", "stripe_count = 2", {"fault": "striped", "lv": "root"}),
        ('"pv0", 0', '"pvmove0", 0', {"fault": "stacked", "lv": "root"}),
        ("cow_store", "merging_store", {"fault": "merging-snapshot"}),
        ('status = ["ALLOCATABLE"]\nflags = []', 'status = []\nflags = ["MISSING"]', {"fault": "pv-missing"}),
        ('status = ["ALLOCATABLE"]', 'status = "MISSING"', {"fault": "pv-missing"}),
        ("pv0 {", "pv1 {\n}\npv0 {", {"fault": "several-pvs"}),
    ],
)
def test_metadata_of_an_unknown_form_is_not_damaged(old: str, new: str, fields: dict[str, str]) -> None:
    """LVM accepts it. kimbox does not know which bytes it uses."""
    assert old in TEXT
    with refused(UnknownUsage, "disk-unsupported", **fields):
        group_of(pv(TEXT.replace(old, new, 1).encode() + b"\0"))


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ('"pv0", 0', '"pv0", 1', {"fault": "volumes-overlap"}),
        ('"pv0", 0', '"pv0", 99999', {"fault": "volume-extents"}),
        ("extent_count = 4", "extent_count = -1", {"fault": "bad-number"}),
        ("pe_start = 2048", "pe_start = 99999999999", {"fault": "larger-than-partition"}),
        ('origin = "root"', 'origin = "nobody"', {"fault": "bad-snapshot"}),
        ('cow_store = "root_snap"', 'cow_store = "root"', {"fault": "bad-snapshot"}),
        ("segment_count = 1", "segment_count = 900000000", {"fault": "segment-count"}),
        ("segment1 {", "segment2 {", {"fault": "missing-section"}),
        ("persistent {", "../x\x1b {", {"fault": "no-key"}),
        ("persistent {", "a:b {", {"fault": "bad-volume"}),
        ("extent_size = 8192", "extent_size = 0", {"fault": "bad-extents"}),
        ("extent_size = 8192", "extent_size = 99999999999999999999", {"fault": "bad-value", "line": "7"}),
        ("seqno = 1", "seqno = 1\nseqno = 1", {"fault": "duplicate-key", "line": "4"}),
        ("}\n", "", {"fault": "missing-brace"}),
        ("flags = []", "x {" * 100, {"fault": "too-deep"}),
        ("flags = []", "flags = [", {"fault": "bad-value", "line": "7"}),
    ],
)
def test_inconsistent_metadata_is_damaged(old: str, new: str, fields: dict[str, str]) -> None:
    """Although its checksums are correct."""
    assert old in TEXT
    with refused(ImageError, "disk-damaged", part="LVM metadata", **fields):
        group_of(pv(TEXT.replace(old, new, 1).encode() + b"\0"))


def written_by_lvm(name: str) -> bytes:
    """Returns a text that LVM 2.03.31 of Debian 13 wrote. tests/guest/lvm-layouts creates more."""
    return (Path(__file__).parent / "lvm/layouts" / f"{name}.txt").read_bytes() + b"\0"


def test_texts_of_real_lvm_are_read() -> None:
    """All end in a comment. They have volumes and stores in pieces, tags with every character, a locked group."""
    mib = 1 << 20
    group = group_of(pv(written_by_lvm("pieces")))
    assert ("pieces", mib, 48 * mib) == (group.name, group.start_bytes, group.end_bytes)
    assert {
        "a": [(0, 4 * mib, mib), (4 * mib, 5 * mib, 8 * mib)],
        "b": [(0, 3 * mib, 5 * mib)],
    } == {name: [attrs.astuple(piece) for piece in volume.segments] for name, volume in group.volumes.items()}
    group = group_of(pv(written_by_lvm("snapextended"), at=writer.MDA_SIZE_BYTES - 1000))
    assert (reader.Snapshot("s", "a", 4096),) == group.snapshots
    assert [(0, 2 * mib, 5 * mib), (2 * mib, 2 * mib, 9 * mib)] == [
        attrs.astuple(p) for p in group.volumes["s"].segments
    ]
    assert {"a": 4 * mib} == {v.name: v.size_bytes for v in group_of(pv(written_by_lvm("tagged"))).volumes.values()}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"fault": "merging-snapshot"}, "snapmerging"),
        ({"fault": "volume-type", "lv": "pool", "type": "thin-pool"}, "thin"),
    ],
)
def test_texts_of_real_lvm_with_an_unknown_form(fields: dict[str, str], name: str) -> None:
    """The error has the reason. The metadata is not damaged."""
    with refused(UnknownUsage, "disk-unsupported", **fields):
        group_of(pv(written_by_lvm(name)))


def test_the_newest_intact_area_counts() -> None:
    """LVM uses the metadata area with the newest change, or the other area if that one is damaged."""
    older = pv(TEXT.encode() + b"\0")
    newer = pv(TEXT.replace("seqno = 1", "seqno = 2").replace("persistent {", "renamed {").encode() + b"\0")
    start, size = writer.MDA_START_BYTES, writer.MDA_SIZE_BYTES
    next_area = SECTOR_BYTES + 32 + 40 + 32 + 16  # after the label, identity, data areas and the first metadata area
    older[next_area + 16 : 2 * SECTOR_BYTES] = older[next_area : 2 * SECTOR_BYTES - 16]
    struct.pack_into("<QQ", older, next_area, PE_START_BYTES, size)
    struct.pack_into("<I", older, SECTOR_BYTES + 16, writer.crc(bytes(older[SECTOR_BYTES + 20 : 2 * SECTOR_BYTES])))

    def names(first: bytes, second: bytes) -> set[str]:
        disk = older + second
        disk[start : start + size] = first
        return group_of(bytes(disk)).volumes.keys() & {"persistent", "renamed"}

    old, new = (bytes(disk[start : start + size]) for disk in (older, newer))
    assert {"renamed"} == names(old, new) == names(new, old) == names(bytes(size), new)
    assert {"persistent"} == names(old, b"x" + new[1:])
    with refused(ImageError, "disk-damaged", part="LVM metadata", fault="area-header"):
        names(bytes(size), bytes(size))


def test_a_pv_without_a_volume_group_is_not_damaged() -> None:
    """pvcreate(8) creates a PV without a text."""
    disk = pv(b"")
    struct.pack_into("<QQII", disk, writer.MDA_START_BYTES + 40, 0, 0, 0, 0)
    header = bytes(disk[writer.MDA_START_BYTES + 4 : writer.MDA_START_BYTES + SECTOR_BYTES])
    struct.pack_into("<I", disk, writer.MDA_START_BYTES, writer.crc(header))
    with refused(UnknownUsage, "disk-unsupported", fault="no-metadata"):
        group_of(disk)


def store(*pairs: tuple[int, int], chunk: int = UNIT) -> bytes:
    """Returns a COW store with these exceptions."""
    header = struct.pack("<IIII", 0x70416E53, 1, 1, chunk // SECTOR_BYTES).ljust(chunk, b"\0")
    return header + b"".join(struct.pack("<QQ", *pair) for pair in pairs).ljust(chunk, b"\0") + bytes(30 * chunk)


def parsed(raw: bytes) -> Store:
    return Store.parse(lambda offset, size: raw[offset : offset + size], len(raw), UNIT, 100 * UNIT)


def test_a_store_shows_changed_chunks() -> None:
    """The store has the changed chunks, the origin the others. Only used bytes of a chunk are in use."""
    raw = bytearray(store((7, 3), (2, 2)))
    raw[3 * UNIT : 4 * UNIT] = b"s" * UNIT
    cow = parsed(bytes(raw))
    view = cow.view(lambda offset, size: b"o" * size, lambda offset, size: bytes(raw[offset : offset + size]))
    assert b"ooss" == view(7 * UNIT - 2, 4)
    assert [(2 * UNIT, 3 * UNIT), (7 * UNIT, 8 * UNIT)] == cow.changed
    assert [(0, 2 * UNIT), (3 * UNIT + 10, 3 * UNIT + 20)] == cow.used([(7 * UNIT + 10, 7 * UNIT + 20)])


@pytest.mark.parametrize(
    ("fault", "pairs"),
    [
        ("bad-exception", [(100, 2)]),
        ("bad-exception", [(1, 99)]),
        ("bad-exception", [(1, 2), (1, 3)]),
        ("shared-chunk", [(1, 2), (2, 2)]),
        ("bad-exception", [(1, 1)]),
        ("bad-exception", [(0, 258)]),
    ],
)
def test_an_inconsistent_store_is_damaged(fault: str, pairs: list[tuple[int, int]]) -> None:
    """Chunks beyond the end of the origin or the store, chunks that occur twice, and a chunk that is a table."""
    with refused(ImageError, "disk-damaged", part="snapshot store", fault=fault):
        parsed(store(*pairs))


def test_a_store_without_an_end_is_damaged() -> None:
    """The table is full, and the store has no room for the next table."""
    with refused(ImageError, "disk-damaged", part="snapshot store", fault="endless-tables"):
        Store.parse(
            lambda offset, size: store(*((i, 2) for i in range(256)))[offset : offset + size],
            32 * UNIT,
            UNIT,
            1000 * UNIT,
        )


def test_a_disk_without_a_partition_table_is_in_use() -> None:
    """All of its bytes are in use."""
    in_use = inuse.find(DiskView.of(lambda offset, size: bytes(size), 1 << 20))
    assert [(0, 1 << 20)] == in_use.used
