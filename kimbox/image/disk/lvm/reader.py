"""Reads LVM2's metadata from a physical volume that no LVM has activated. Pure: bytes come from a function.

Format: as in `writer`; the guest's LVM may have written it since. It is read as LVM reads it: label in
one of the first four sectors, the text that the metadata area's header names, around the end of the area where it runs
over. Sizes and depth are bounded, checksums checked.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import pairwise

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ext4.usage import Opaque
from kimbox.image.disk.lvm import textformat
from kimbox.image.disk.lvm.textformat import Section
from kimbox.image.disk.lvm.writer import MDA_MAGIC, crc
from kimbox.spec.layout import SECTOR_BYTES

LABEL_MAGIC = b"LABELONE"
LABEL_SECTORS = 4

#: No text is larger.
MAX_TEXT_BYTES = 4 << 20

#: No number of a sound text is as large: sectors, extents, counts.
MAX_NUMBER = 1 << 53

#: Sizes that a snapshot's chunks can have: powers of two.
CHUNKS_BYTES = frozenset(4096 << power for power in range(9))

#: `raw_locn.flags`: there is no text.
IGNORED = 1

#: Names of volume groups and volumes, and types of segments (lvm(8), VALID NAMES). They go into messages.
_NAME = re.compile(r"[A-Za-z0-9+_.-]{1,127}")
_DAMAGED = "its LVM metadata is damaged"


@attrs.frozen
class Segment:
    """A piece of an LV that lies on the PV in one piece; offsets and size in bytes, of the LV and of the PV."""

    offset: int
    size_bytes: int
    place: int


@attrs.frozen
class Volume:
    """An LV whose pieces are known."""

    name: str
    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)


@attrs.frozen
class Snapshot:
    """An LV that is the store of a snapshot, and the LV that it is one of."""

    store: str
    origin: str
    chunk_bytes: int


@attrs.frozen
class Group:
    """A VG on one PV. `start_bytes`: where on the PV the first extent lies; what is before it belongs to LVM."""

    name: str
    start_bytes: int
    end_bytes: int
    volumes: dict[str, Volume]
    snapshots: tuple[Snapshot, ...]


def is_pv(read: Read) -> bool:
    """Whether LVM would take this for a physical volume."""
    return _label(read) is not None


def _label(read: Read) -> bytes | None:
    for sector in range(LABEL_SECTORS):
        raw = read(sector * SECTOR_BYTES, SECTOR_BYTES)
        if raw.startswith(LABEL_MAGIC):
            return raw
    return None


def read_group(read: Read, size_bytes: int) -> Group:
    """The volume group of a PV of that size.

    Raises Opaque where it has what kimbox does not know (no volume group, several PVs, LVs that are neither linear nor
    snapshots), ImageError where it is damaged.
    """
    name, group = max((_root(text) for text in _texts(read, size_bytes)), key=_seqno)
    try:
        return _group(name, group, size_bytes)
    except _Unsound as error:
        raise ImageError(f"{_DAMAGED}: {error}") from None


def through(read: Read, volume: Volume) -> Read:
    """The bytes of an LV, where `read` returns those of its PV. Raises ImageError beyond its end."""

    def read_volume(offset: int, size: int) -> bytes:
        if offset + size > volume.size_bytes:
            raise ImageError("it is shorter than what it says of itself")
        found = [
            read(segment.place + start - segment.offset, end - start)
            for segment in volume.segments
            for start, end in [(max(offset, segment.offset), min(offset + size, segment.offset + segment.size_bytes))]
            if start < end
        ]
        return b"".join(found)

    return read_volume


class _Unsound(Exception):
    """A part of the metadata that LVM would not take; says which, in words."""


def _group(name: str, group: Section, size_bytes: int) -> Group:
    pvs = _section(group, "physical_volumes")
    if len(pvs) != 1:
        raise Opaque("its volume group has several physical volumes")
    ((pv_name, pv),) = pvs.items()
    if not isinstance(pv, dict):
        raise _Unsound(f"{pv_name} is no section")
    if "MISSING" in _texts_of(pv, "status") + _texts_of(pv, "flags"):
        raise Opaque("its volume group takes it for missing, and may have been changed without it")
    unit = _number(group, "extent_size") * SECTOR_BYTES
    start, count = _number(pv, "pe_start") * SECTOR_BYTES, _number(pv, "pe_count")
    if not unit or not start:
        raise _Unsound("extents of no size, or at the place of the label")
    if start + count * unit > size_bytes:
        raise _Unsound("it is larger than its partition")
    pv_extents = _Extents(pv_name, unit, start, count)
    volumes: dict[str, Volume] = {}
    snapshots: list[Snapshot] = []
    for label, lv in _section(group, "logical_volumes", optional=True).items():
        if not isinstance(lv, dict) or not _NAME.fullmatch(label):
            raise _Unsound("a volume without a sound name, or that is no section")
        segments = _segments(label, lv)
        if segments[0].get("type") == "snapshot":
            snapshots.append(_snapshot(label, segments))
        else:
            volumes[label] = Volume(label, tuple(pv_extents.linear(label, segments)))
    _check(volumes, snapshots)
    return Group(name, start, start + count * unit, volumes, tuple(snapshots))


def _segments(name: str, lv: Section) -> list[Section]:
    """The segments of an LV: at least one. Every section below an LV is one."""
    parts = [part for part in lv.values() if isinstance(part, dict)]
    if not parts or len(parts) != _number(lv, "segment_count"):
        raise _Unsound(f"the volume {name} has not the segments that it names")
    return [_section(lv, f"segment{number}") for number in range(1, len(parts) + 1)]


def _snapshot(name: str, segments: list[Section]) -> Snapshot:
    """A snapshot, which LVM keeps as a hidden LV that ties a store to its origin."""
    (segment, *rest) = segments
    if rest:
        raise _Unsound(f"the snapshot {name} has several segments")
    if "merging_store" in segment:
        raise Opaque("one of its snapshots is being merged into its origin")
    chunk = _number(segment, "chunk_size") * SECTOR_BYTES
    return Snapshot(_text(segment, "cow_store"), _text(segment, "origin"), chunk)


@attrs.frozen
class _Extents:
    """The extents of the one PV: its name in the metadata, their size and first byte, how many there are."""

    pv: str
    unit: int
    start: int
    count: int

    def linear(self, name: str, segments: list[Section]) -> Iterator[Segment]:
        """The pieces of an LV. Raises Opaque if it is not linear, _Unsound if it reaches beyond the PV."""
        offset = 0
        for segment in segments:
            kind = _text(segment, "type")
            if kind not in ("striped", "linear"):
                plain = kind if _NAME.fullmatch(kind) else "unknown"
                raise Opaque(f"its volume {name} is of the type {plain}, which kimbox does not read")
            if _number(segment, "stripe_count") != 1:
                raise Opaque(f"its volume {name} is striped")
            owner, first = _stripe(name, segment)
            if owner != self.pv:  # a volume on a volume, as under pvmove
                raise Opaque(f"its volume {name} lies on another volume")
            extents = _number(segment, "extent_count")
            if _number(segment, "start_extent") * self.unit != offset or not 0 < extents <= self.count - first:
                raise _Unsound(f"the volume {name} reaches beyond the disk, or has gaps")
            yield Segment(offset, extents * self.unit, self.start + first * self.unit)
            offset += extents * self.unit


def _stripe(name: str, segment: Section) -> tuple[str, int]:
    """The PV or LV that a piece lies on, and its first extent there."""
    match segment.get("stripes"):
        case [str(owner), int(first)] if 0 <= first < MAX_NUMBER:
            return owner, first
    raise _Unsound(f"the volume {name} has no place")


def _check(volumes: dict[str, Volume], snapshots: list[Snapshot]) -> None:
    """Raises _Unsound if two LVs share a piece, or a snapshot is one of nothing."""
    taken = sorted((s.place, s.place + s.size_bytes, v.name) for v in volumes.values() for s in v.segments)
    for (_, end, one), (start, _, two) in pairwise(taken):
        if start < end:
            raise _Unsound(f"the volumes {one} and {two} lie over each other")
    stores = [snapshot.store for snapshot in snapshots]
    for snapshot in snapshots:
        known = snapshot.store in volumes and snapshot.origin in volumes and snapshot.origin not in stores
        if not known or snapshot.chunk_bytes not in CHUNKS_BYTES:
            raise _Unsound("a snapshot of nothing")
    if len(set(stores)) != len(stores):
        raise _Unsound("two snapshots with one store")


def _section(parent: Section, key: str, *, optional: bool = False) -> Section:
    value = parent.get(key, {} if optional else None)
    if not isinstance(value, dict):
        raise _Unsound(f"there is no section {key}")
    return value


def _number(section: Section, key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
        raise _Unsound(f"{key} is no number that can be")
    return value


def _text(section: Section, key: str) -> str:
    value = section.get(key)
    if not isinstance(value, str):
        raise _Unsound(f"{key} is no text")
    return value


def _texts_of(section: Section, key: str) -> list[str]:
    """A list of texts; one that is alone may stand without brackets."""
    value = section.get(key, [])
    if not isinstance(value, list):
        value = [value] if isinstance(value, str) else []
    return [item for item in value if isinstance(item, str)]


def _root(text: str) -> tuple[str, Section]:
    """Name and section of the volume group of a text: its first section. What follows says who wrote it."""
    try:
        tree = textformat.parse(text)
    except textformat.Malformed as error:
        raise ImageError(f"{_DAMAGED}: {error}") from None
    for name, group in tree.items():
        if isinstance(group, dict) and _NAME.fullmatch(name):
            return name, group
    raise ImageError(f"{_DAMAGED}: it names no volume group")


def _seqno(root: tuple[str, Section]) -> int:
    """How often the metadata was changed; LVM goes by the area where it is highest."""
    seqno = root[1].get("seqno")
    return seqno if isinstance(seqno, int) else 0


def _texts(read: Read, size_bytes: int) -> list[str]:
    """The texts that the metadata areas hold now: at least one.

    An area that is damaged does not count where another is sound, as for LVM. Raises Opaque if there is no text on
    this PV, ImageError if label, headers or texts are not sound.
    """
    areas = _areas(read)
    texts: list[str] = []
    damage: ImageError | None = None
    for start, length in areas:
        try:
            text = _text_in(read, start, length, size_bytes)
        except ImageError as error:
            damage = error
        else:
            texts += [text] if text else []
    if texts:
        return texts
    raise damage or Opaque("it belongs to no volume group, or its metadata is on another physical volume")


def _areas(read: Read) -> list[tuple[int, int]]:
    """Start and length of the metadata areas, in bytes, as the label has them. Raises ImageError if that is damaged."""
    label = _label(read)
    if label is None:
        raise ImageError("it is no physical volume of LVM")
    told, offset = struct.unpack_from("<I", label, 16)[0], struct.unpack_from("<I", label, 20)[0]
    if told != crc(label[20:]) or label[24:32] != b"LVM2 001" or not 32 <= offset <= 256:
        raise ImageError(f"{_DAMAGED}: its label is wrong")
    at = offset + 40
    areas: list[list[tuple[int, int]]] = [[], []]  # data, metadata
    for found in areas:
        while (pair := struct.unpack_from("<QQ", label, at)) != (0, 0):
            found.append(pair)
            at += 16
            if at > SECTOR_BYTES - 32:
                raise ImageError(f"{_DAMAGED}: its label is wrong")
        at += 16
    return areas[1]


def _text_in(read: Read, start: int, length: int, size_bytes: int) -> str | None:
    """The text of one metadata area, None if that is not used."""
    if not 2 * SECTOR_BYTES <= length <= size_bytes or not 0 < start <= size_bytes - length:
        raise ImageError(f"{_DAMAGED}: its metadata area lies outside")
    header = read(start, SECTOR_BYTES)
    told = struct.unpack_from("<I", header, 0)[0]
    if header[4:20] != MDA_MAGIC or told != crc(header[4:]):
        raise ImageError(f"{_DAMAGED}: the header of its metadata area is wrong")
    offset, count, checksum, flags = struct.unpack_from("<QQII", header, 40)
    if not offset or flags & IGNORED:
        return None
    if not SECTOR_BYTES <= offset < length or not 0 < count <= min(length - SECTOR_BYTES, MAX_TEXT_BYTES):
        raise ImageError(f"{_DAMAGED}: its text lies outside of the metadata area")
    whole = read(start + offset, min(count, length - offset))
    if len(whole) < count:  # the area is a ring behind its header
        whole += read(start + SECTOR_BYTES, count - len(whole))
    if crc(whole) != checksum:
        raise ImageError(f"{_DAMAGED}: the checksum of its text is wrong")
    return whole.rstrip(b"\0").decode("utf-8", "replace")
