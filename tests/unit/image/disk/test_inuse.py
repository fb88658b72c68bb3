"""Sets of bytes, LVM's metadata and snapshot stores as disks have them, sound and hostile; no program runs."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinyimage import DISK

from kimbox.errors import ImageError
from kimbox.image.disk import inuse, ranges
from kimbox.image.disk.cowstore import Store
from kimbox.image.disk.ext4.usage import Opaque
from kimbox.image.disk.lvm import reader, writer
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.view import DiskView
from kimbox.spec.layout import PE_START_BYTES, SECTOR_BYTES, plan

LAYOUT = plan(DISK)
PV_BYTES = LAYOUT.pv.size_bytes
UNIT = 4096

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8).map(ranges.merged)


def members(found: Ranges) -> set[int]:
    return {at for start, end in found for at in range(start, end)}


@given(pieces, pieces)
def test_sets_are_sets(one: Ranges, two: Ranges) -> None:
    """Each operation does what that of Python's sets does, and gives sorted pieces that do not touch."""
    for found, expected in (
        (ranges.common(one, two), members(one) & members(two)),
        (ranges.without(one, two), members(one) - members(two)),
        (ranges.merged([*one, *two]), members(one) | members(two)),
    ):
        assert expected == members(found)
        assert all(left[1] < right[0] for left, right in pairwise(found))
    assert ranges.size(one) == len(members(one))


def pv(text: bytes | None = None, *, at: int = SECTOR_BYTES) -> bytearray:
    """A PV of the layout, with another text at another place of its metadata area."""
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
def test_metadata_is_read_wherever_lvm_has_put_it(at: int) -> None:
    """LVM writes each text behind the last one, around the end of the area."""
    group = group_of(pv(TEXT.encode() + b"\0", at=at))
    assert LAYOUT.volume_group == group.name
    assert {v.name: (v.place.size_bytes, v.place.offset_bytes - LAYOUT.pv.offset_bytes) for v in LAYOUT.volumes} == {
        name: (volume.size_bytes, volume.segments[0].place) for name, volume in group.volumes.items()
    }
    (snapshot,) = group.snapshots
    assert ("root_snap", "root", 65536) == attrs.astuple(snapshot)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        (
            'type = "striped"',
            'type = "thin-pool"',
            Opaque,
            "volume root is of the type thin-pool, which kimbox does not",
        ),
        ('type = "striped"', 'type = "\x1b[31m"', Opaque, "volume root is of the type unknown, which kimbox does not"),
        ("stripe_count = 1", "stripe_count = 2", Opaque, "volume root is striped"),
        ('"pv0", 0', '"pvmove0", 0', Opaque, "volume root lies on another volume"),
        ("cow_store", "merging_store", Opaque, "being merged"),
        ('status = ["ALLOCATABLE"]\nflags = []', 'status = []\nflags = ["MISSING"]', Opaque, "takes it for missing"),
        ('status = ["ALLOCATABLE"]', 'status = "MISSING"', Opaque, "takes it for missing"),
        ("pv0 {", "pv1 {\n}\npv0 {", Opaque, "several physical volumes"),
        ('"pv0", 0', '"pv0", 1', ImageError, "lie over each other"),
        ('"pv0", 0', '"pv0", 99999', ImageError, "beyond the disk"),
        ("extent_count = 4", "extent_count = -1", ImageError, "damaged"),
        ("pe_start = 2048", "pe_start = 99999999999", ImageError, "larger than its partition"),
        ('origin = "root"', 'origin = "nobody"', ImageError, "a snapshot of nothing"),
        ('cow_store = "root_snap"', 'cow_store = "root"', ImageError, "a snapshot of nothing"),
        ("segment_count = 1", "segment_count = 900000000", ImageError, "has not the segments that it names"),
        ("segment1 {", "segment2 {", ImageError, "there is no section segment1"),
        ("persistent {", "../x\x1b {", ImageError, "a key was expected"),
        ("persistent {", "a:b {", ImageError, "without a sound name"),
        ("extent_size = 8192", "extent_size = 0", ImageError, "extents of no size"),
        ("extent_size = 8192", "extent_size = 99999999999999999999", ImageError, "line 7: neither a whole number"),
        ("seqno = 1", "seqno = 1\nseqno = 1", ImageError, "line 4: the same key twice"),
        ("}\n", "", ImageError, "damaged"),
        ("flags = []", "x {" * 100, ImageError, "damaged"),
        ("flags = []", "flags = [", ImageError, "damaged"),
    ],
)
def test_metadata_that_lies_is_refused(old: str, new: str, error: type[ImageError], words: str) -> None:
    """Whatever its checksums say."""
    assert old in TEXT
    with pytest.raises(error, match=words):
        group_of(pv(TEXT.replace(old, new, 1).encode() + b"\0"))


def written_by_lvm(name: str) -> bytes:
    """A text that LVM 2.03.31 of Debian 13 wrote: tests/guest/lvm-layouts makes more."""
    return (Path(__file__).parent / "lvm/layouts" / f"{name}.txt").read_bytes() + b"\0"


def test_texts_of_real_lvm_are_read() -> None:
    """All end in a comment; volumes and stores in pieces, tags with every character, a volume group that is locked."""
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
    ("words", "name"), [("being merged", "snapmerging"), ("pool is of the type thin-pool", "thin")]
)
def test_texts_of_real_lvm_are_refused_by_their_reason(words: str, name: str) -> None:
    """What kimbox does not read is no damage."""
    with pytest.raises(Opaque, match=words):
        group_of(pv(written_by_lvm(name)))


def test_the_newest_sound_area_counts() -> None:
    """With two metadata areas LVM goes by the one that was changed last, and by the other if that is damaged."""
    older = pv(TEXT.encode() + b"\0")
    newer = pv(TEXT.replace("seqno = 1", "seqno = 2").replace("persistent {", "renamed {").encode() + b"\0")
    start, size = writer.MDA_START_BYTES, writer.MDA_SIZE_BYTES
    behind = SECTOR_BYTES + 32 + 40 + 32 + 16  # label, identity, data areas, the first metadata area
    older[behind + 16 : 2 * SECTOR_BYTES] = older[behind : 2 * SECTOR_BYTES - 16]
    struct.pack_into("<QQ", older, behind, PE_START_BYTES, size)
    struct.pack_into("<I", older, SECTOR_BYTES + 16, writer.crc(bytes(older[SECTOR_BYTES + 20 : 2 * SECTOR_BYTES])))

    def names(first: bytes, second: bytes) -> set[str]:
        disk = older + second
        disk[start : start + size] = first
        return group_of(bytes(disk)).volumes.keys() & {"persistent", "renamed"}

    old, new = (bytes(disk[start : start + size]) for disk in (older, newer))
    assert {"renamed"} == names(old, new) == names(new, old) == names(bytes(size), new)
    assert {"persistent"} == names(old, b"x" + new[1:])
    with pytest.raises(ImageError, match="the header of its metadata area is wrong"):
        names(bytes(size), bytes(size))


def test_a_pv_of_no_volume_group_is_not_damaged() -> None:
    """pvcreate(8) makes one without a text."""
    disk = pv(b"")
    struct.pack_into("<QQII", disk, writer.MDA_START_BYTES + 40, 0, 0, 0, 0)
    header = bytes(disk[writer.MDA_START_BYTES + 4 : writer.MDA_START_BYTES + SECTOR_BYTES])
    struct.pack_into("<I", disk, writer.MDA_START_BYTES, writer.crc(header))
    with pytest.raises(Opaque, match="it belongs to no volume group"):
        group_of(disk)


def store(*pairs: tuple[int, int], chunk: int = UNIT) -> bytes:
    """A store with these exceptions."""
    header = struct.pack("<IIII", 0x70416E53, 1, 1, chunk // SECTOR_BYTES).ljust(chunk, b"\0")
    return header + b"".join(struct.pack("<QQ", *pair) for pair in pairs).ljust(chunk, b"\0") + bytes(30 * chunk)


def parsed(raw: bytes) -> Store:
    return Store.parse(lambda offset, size: raw[offset : offset + size], len(raw), UNIT, 100 * UNIT)


def test_a_store_shows_changed_chunks() -> None:
    """Where a chunk was changed the store has it, else the origin; only what is seen of a chunk is in use."""
    raw = bytearray(store((7, 3), (2, 2)))
    raw[3 * UNIT : 4 * UNIT] = b"s" * UNIT
    held = parsed(bytes(raw))
    view = held.view(lambda offset, size: b"o" * size, lambda offset, size: bytes(raw[offset : offset + size]))
    assert b"ooss" == view(7 * UNIT - 2, 4)
    assert [(2 * UNIT, 3 * UNIT), (7 * UNIT, 8 * UNIT)] == held.changed
    assert [(0, 2 * UNIT), (3 * UNIT + 10, 3 * UNIT + 20)] == held.used([(7 * UNIT + 10, 7 * UNIT + 20)])


@pytest.mark.parametrize("pairs", [[(100, 2)], [(1, 99)], [(1, 2), (1, 3)], [(1, 2), (2, 2)], [(1, 1)], [(0, 258)]])
def test_a_store_that_lies_is_refused(pairs: list[tuple[int, int]]) -> None:
    """Chunks beyond either side, twice, or where a table lies."""
    with pytest.raises(ImageError, match="the store of its snapshot is damaged"):
        parsed(store(*pairs))


def test_a_store_without_an_end_is_refused() -> None:
    """A table that is full, and no room for the next."""
    with pytest.raises(ImageError, match="have no end"):
        Store.parse(
            lambda offset, size: store(*((i, 2) for i in range(256)))[offset : offset + size],
            32 * UNIT,
            UNIT,
            1000 * UNIT,
        )


def test_what_is_not_understood_is_kept() -> None:
    """A disk without a partition table is in use from end to end."""
    found = inuse.find(DiskView.of(lambda offset, size: bytes(size), 1 << 20))
    assert [(0, 1 << 20)] == found.used
