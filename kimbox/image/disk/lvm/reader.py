"""Reads LVM2 metadata from a physical volume that is not activated. Pure: bytes come from a function.

Format: as in `writer`. The guest's LVM may have written newer metadata. This module reads as LVM does: the label in one
of the first four sectors, then the text at the place in the header of the metadata area. The area is a ring: a text may
continue at its start. Sizes and depth have limits, and checksums are verified.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import pairwise

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import faults
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.faults import UnknownUsage
from kimbox.image.disk.lvm import textformat
from kimbox.image.disk.lvm.textformat import Section
from kimbox.image.disk.lvm.writer import MDA_MAGIC, crc
from kimbox.spec.layout import SECTOR_BYTES

LABEL_MAGIC = b"LABELONE"
LABEL_SECTORS = 4

#: Maximum size of a metadata text, in bytes.
MAX_TEXT_BYTES = 4 << 20

#: Upper limit of the numbers in a text (sectors, extents, counts). Valid numbers are smaller.
MAX_NUMBER = 1 << 53

#: Allowed sizes of a snapshot's chunks, in bytes: powers of two.
CHUNKS_BYTES = frozenset(4096 << power for power in range(9))

#: `raw_locn.flags`: the area has no text.
IGNORED = 1

#: Names of volume groups and volumes, and types of segments (lvm(8), VALID NAMES). They are safe in messages.
_NAME = re.compile(r"[A-Za-z0-9+_.-]{1,127}")


@attrs.frozen
class Segment:
    """A part of an LV that is in one piece on the PV: its offset in the LV, its size, and its offset on the PV."""

    offset_bytes: int
    size_bytes: int
    pv_offset_bytes: int


@attrs.frozen
class Volume:
    """A linear LV, with its segments in order."""

    name: str
    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)


@attrs.frozen
class Snapshot:
    """A snapshot: the name of the LV with its COW store, and the name of its origin."""

    store: str
    origin: str
    chunk_bytes: int


@attrs.frozen
class Group:
    """A VG on one PV. `start_bytes`, `end_bytes`: the extents on the PV. Bytes before them belong to LVM."""

    name: str
    start_bytes: int
    end_bytes: int
    volumes: dict[str, Volume]
    snapshots: tuple[Snapshot, ...]


def is_pv(read: Read) -> bool:
    """Whether there is the label of an LVM physical volume."""
    return _label(read) is not None


def _label(read: Read) -> bytes | None:
    for sector in range(LABEL_SECTORS):
        raw = read(sector * SECTOR_BYTES, SECTOR_BYTES)
        if raw.startswith(LABEL_MAGIC):
            return raw
    return None


def read_group(read: Read, size_bytes: int) -> Group:
    """Returns the volume group of a PV of `size_bytes`.

    Raises UnknownUsage if it has a form that kimbox does not know (no volume group, several PVs, LVs that are neither
    linear nor snapshots), ImageError if it is damaged.
    """
    read = faults.exact(read, faults.LVM_METADATA)
    name, group = max((_root(text) for text in _texts(read, size_bytes)), key=_seqno)
    return _group(name, group, size_bytes)


def through(read: Read, volume: Volume) -> Read:
    """Returns a function that reads an LV. `read` reads its PV. The function raises ImageError beyond the end."""

    def read_volume(offset: int, size: int) -> bytes:
        if offset + size > volume.size_bytes:
            raise faults.damaged("truncated", "it is longer than its LV")
        end = offset + size
        pieces = []
        for segment in volume.segments:
            first = max(offset, segment.offset_bytes)
            last = min(end, segment.offset_bytes + segment.size_bytes)
            if first < last:
                pieces.append(read(segment.pv_offset_bytes + first - segment.offset_bytes, last - first))
        return b"".join(pieces)

    return read_volume


def _damaged(fault: str, reason: str, **details: int) -> ImageError:
    return faults.damaged(fault, reason, part=faults.LVM_METADATA, **details)


def _group(name: str, group: Section, size_bytes: int) -> Group:
    pvs = _section(group, "physical_volumes")
    if len(pvs) != 1:
        raise UnknownUsage("several-pvs", "the volume group has several physical volumes")
    ((pv_name, pv),) = pvs.items()
    if not isinstance(pv, dict):
        raise _damaged("missing-section", "the physical volume is not a section")
    if "MISSING" in _texts_of(pv, "status") + _texts_of(pv, "flags"):
        raise UnknownUsage(
            "pv-missing", "the volume group marks this physical volume as missing, and may have changed without it"
        )
    unit = _number(group, "extent_size") * SECTOR_BYTES
    start, count = _number(pv, "pe_start") * SECTOR_BYTES, _number(pv, "pe_count")
    if not unit or not start:
        raise _damaged("bad-extents", "the extents have the size 0, or start at the label")
    if start + count * unit > size_bytes:
        raise _damaged("larger-than-partition", "the physical volume is larger than its partition")
    pv_extents = _Extents(pv_name, unit, start, count)
    volumes: dict[str, Volume] = {}
    snapshots: list[Snapshot] = []
    for label, lv in _section(group, "logical_volumes", optional=True).items():
        if not isinstance(lv, dict) or not _NAME.fullmatch(label):
            raise _damaged("bad-volume", "a volume has an invalid name or is not a section")
        segments = _segments(label, lv)
        if segments[0].get("type") == "snapshot":
            snapshots.append(_snapshot(label, segments))
        else:
            volumes[label] = Volume(label, tuple(pv_extents.linear(label, segments)))
    _check(volumes, snapshots)
    return Group(name, start, start + count * unit, volumes, tuple(snapshots))


def _segments(name: str, lv: Section) -> list[Section]:
    """Returns the segments of an LV: at least one. Every section of an LV is a segment."""
    parts = [part for part in lv.values() if isinstance(part, dict)]
    if not parts or len(parts) != _number(lv, "segment_count"):
        raise _damaged("segment-count", f"the volume {name} has another number of segments than its segment_count")
    return [_section(lv, f"segment{number}") for number in range(1, len(parts) + 1)]


def _snapshot(name: str, segments: list[Section]) -> Snapshot:
    """Returns a snapshot. LVM describes it by a hidden LV that names the COW store and the origin."""
    (segment, *others) = segments
    if others:
        raise _damaged("snapshot-segments", f"the snapshot {name} has several segments")
    if "merging_store" in segment:
        raise UnknownUsage("merging-snapshot", "a snapshot is being merged into its origin")
    chunk = _number(segment, "chunk_size") * SECTOR_BYTES
    return Snapshot(_text(segment, "cow_store"), _text(segment, "origin"), chunk)


@attrs.frozen
class _Extents:
    """The extents of the PV: name of the PV in the metadata, size of an extent, first byte, number of extents."""

    pv: str
    unit: int
    start: int
    count: int

    def linear(self, name: str, segments: list[Section]) -> Iterator[Segment]:
        """Yields the segments of an LV.

        Raises UnknownUsage if the LV is not linear, ImageError if it has gaps or extends beyond the PV.
        """
        offset = 0
        for segment in segments:
            kind = _text(segment, "type")
            if kind not in ("striped", "linear"):
                printable = kind if _NAME.fullmatch(kind) else "unknown"
                raise UnknownUsage(
                    "volume-type",
                    f"the volume {name} has the type {printable}, which kimbox does not read",
                    lv=name,
                    type=printable,
                )
            if _number(segment, "stripe_count") != 1:
                raise UnknownUsage("striped", f"the volume {name} is striped", lv=name)
            device, first = _stripe(name, segment)
            if device != self.pv:  # an LV on another LV, for example during pvmove
                raise UnknownUsage("stacked", f"the volume {name} is on another volume", lv=name)
            extents = _number(segment, "extent_count")
            if _number(segment, "start_extent") * self.unit != offset or not 0 < extents <= self.count - first:
                raise _damaged("volume-extents", f"the volume {name} has gaps or extends beyond the disk")
            yield Segment(offset, extents * self.unit, self.start + first * self.unit)
            offset += extents * self.unit


def _stripe(name: str, segment: Section) -> tuple[str, int]:
    """Returns the name of the PV or LV that has the segment, and its first extent there."""
    match segment.get("stripes"):
        case [str(device), int(first)] if 0 <= first < MAX_NUMBER:
            return device, first
    raise _damaged("volume-place", f"a segment of the volume {name} has no valid place")


def _check(volumes: dict[str, Volume], snapshots: list[Snapshot]) -> None:
    """Raises ImageError if two LVs overlap, or a snapshot has no valid origin, store or chunk size."""
    occupied = sorted(
        (segment.pv_offset_bytes, segment.pv_offset_bytes + segment.size_bytes, volume.name)
        for volume in volumes.values()
        for segment in volume.segments
    )
    for (_, end, name), (start, _, next_name) in pairwise(occupied):
        if start < end:
            raise _damaged("volumes-overlap", f"the volumes {name} and {next_name} overlap")
    stores = [snapshot.store for snapshot in snapshots]
    for snapshot in snapshots:
        known = snapshot.store in volumes and snapshot.origin in volumes and snapshot.origin not in stores
        if not known or snapshot.chunk_bytes not in CHUNKS_BYTES:
            raise _damaged("bad-snapshot", "a snapshot has no valid origin, COW store or chunk size")
    if len(set(stores)) != len(stores):
        raise _damaged("shared-store", "two snapshots have the same COW store")


def _section(parent: Section, key: str, *, optional: bool = False) -> Section:
    value = parent.get(key, {} if optional else None)
    if not isinstance(value, dict):
        raise _damaged("missing-section", f"the section {key} is missing")
    return value


def _number(section: Section, key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
        raise _damaged("bad-number", f"{key} is not a valid number")
    return value


def _text(section: Section, key: str) -> str:
    value = section.get(key)
    if not isinstance(value, str):
        raise _damaged("bad-text", f"{key} is not a text")
    return value


def _texts_of(section: Section, key: str) -> list[str]:
    """Returns the texts of a list. A single text does not need brackets."""
    value = section.get(key, [])
    if not isinstance(value, list):
        value = [value] if isinstance(value, str) else []
    return [item for item in value if isinstance(item, str)]


def _root(text: str) -> tuple[str, Section]:
    """Returns name and section of the volume group in a text: the first section. Later values describe its writer."""
    try:
        tree = textformat.parse(text)
    except textformat.Malformed as error:
        raise _damaged(error.fault, str(error), line=error.line) from None
    for name, group in tree.items():
        if isinstance(group, dict) and _NAME.fullmatch(name):
            return name, group
    raise _damaged("no-group", "the text has no volume group")


def _seqno(root: tuple[str, Section]) -> int:
    """Returns the number of changes of the metadata. LVM uses the area with the highest number."""
    seqno = root[1].get("seqno")
    return seqno if isinstance(seqno, int) else 0


def _texts(read: Read, size_bytes: int) -> list[str]:
    """Returns the current texts of the metadata areas: at least one.

    As in LVM, a damaged area is ignored if another one is intact. Raises UnknownUsage if this PV has no text,
    ImageError if label, headers or texts are damaged.
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
    raise damage or UnknownUsage(
        "no-metadata",
        "the physical volume belongs to no volume group, or the metadata is on another physical volume",
    )


def _areas(read: Read) -> list[tuple[int, int]]:
    """Returns start and length, in bytes, of the metadata areas in the label. Raises ImageError if it is damaged."""
    label = _label(read)
    if label is None:
        raise faults.unsupported("no-lvm", "the partition is not an LVM physical volume")
    checksum, offset = struct.unpack_from("<I", label, 16)[0], struct.unpack_from("<I", label, 20)[0]
    if checksum != crc(label[20:]) or label[24:32] != b"LVM2 001" or not 32 <= offset <= 256:
        raise _damaged("bad-label", "invalid label or wrong checksum of the label")
    at = offset + 40
    lists: list[list[tuple[int, int]]] = [[], []]  # data areas, metadata areas
    for areas in lists:
        while (area := struct.unpack_from("<QQ", label, at)) != (0, 0):
            areas.append(area)
            at += 16
            if at > SECTOR_BYTES - 32:
                raise _damaged("bad-label", "the label has too many areas")
        at += 16
    return lists[1]


def _text_in(read: Read, start: int, length: int, size_bytes: int) -> str | None:
    """Returns the text of one metadata area, or None if the area is not used."""
    if not 2 * SECTOR_BYTES <= length <= size_bytes or not 0 < start <= size_bytes - length:
        raise _damaged("area-outside", "the metadata area is outside the physical volume")
    header = read(start, SECTOR_BYTES)
    header_checksum = struct.unpack_from("<I", header, 0)[0]
    if header[4:20] != MDA_MAGIC or header_checksum != crc(header[4:]):
        raise _damaged("area-header", "invalid header of the metadata area")
    offset, count, checksum, flags = struct.unpack_from("<QQII", header, 40)
    if not offset or flags & IGNORED:
        return None
    if not SECTOR_BYTES <= offset < length or not 0 < count <= min(length - SECTOR_BYTES, MAX_TEXT_BYTES):
        raise _damaged("text-outside", "the text is outside the metadata area")
    text = read(start + offset, min(count, length - offset))
    if len(text) < count:  # after its header, the area is a ring
        text += read(start + SECTOR_BYTES, count - len(text))
    if crc(text) != checksum:
        raise _damaged("text-checksum", "wrong checksum of the text")
    return text.rstrip(b"\0").decode("utf-8", "replace")
