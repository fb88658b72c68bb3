"""Reads LVM2's metadata from a physical volume that no LVM has activated. Pure: bytes come from a function.

Format: as in lvm2.py, which writes it; the guest's LVM has gone on writing since. It is read as LVM reads it: label in
one of the first four sectors, the text that the metadata area's header names, around the end of the area where it runs
over. Sizes and depth are bounded, checksums checked.
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import Any

import attrs

from kimbox.errors import ImageError
from kimbox.image.ext4 import Read
from kimbox.image.ext4used import Opaque
from kimbox.image.lvm2 import MDA_MAGIC, crc
from kimbox.spec.layout import SECTOR_BYTES

LABEL_MAGIC = b"LABELONE"
LABEL_SECTORS = 4

#: No text is larger, and no section is deeper.
MAX_TEXT_BYTES = 4 << 20
MAX_DEPTH = 8

#: Sizes that a snapshot's chunks can have: powers of two.
CHUNKS_BYTES = frozenset(4096 << power for power in range(9))

#: `raw_locn.flags`: there is no text.
IGNORED = 1

_WORD = re.compile(r'\s*(?:#[^\n]*\s*)*("(?:[^"\\]|\\.)*"|[\[\]{}=,]|[^\s\[\]{}=,"#]+)')
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

    Raises Opaque where it has what kimbox does not know (several PVs, LVs that are neither linear nor snapshots),
    ImageError where it is damaged.
    """
    text = _text(read, size_bytes)
    try:
        tree = _parse(text)
        name, group = next((name, value) for name, value in tree.items() if isinstance(value, dict))
        if len(group["physical_volumes"]) != 1:
            raise Opaque("its volume group has several physical volumes")
        (pv,) = group["physical_volumes"].values()
        unit = _number(group["extent_size"]) * SECTOR_BYTES
        start, count = _number(pv["pe_start"]) * SECTOR_BYTES, _number(pv["pe_count"])
        if not unit or start + count * unit > size_bytes:
            raise ImageError(f"{_DAMAGED}: it is larger than its partition")
        volumes, snapshots = {}, []
        for label, lv in group.get("logical_volumes", {}).items():
            segments = [lv[f"segment{i + 1}"] for i in range(_number(lv["segment_count"]))]
            if segments[0]["type"] == "snapshot":
                chunk = _number(segments[0]["chunk_size"]) * SECTOR_BYTES
                snapshots.append(Snapshot(str(segments[0]["cow_store"]), str(segments[0]["origin"]), chunk))
            else:
                volumes[label] = Volume(label, tuple(_linear(label, segments, unit, start, count)))
    except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError) as error:
        raise ImageError(f"{_DAMAGED}, or not of a kind that kimbox reads ({error!r})") from None
    _check(volumes, snapshots)
    return Group(name, start, start + count * unit, volumes, tuple(snapshots))


def _linear(name: str, segments: list[Any], unit: int, start: int, count: int) -> list[Segment]:
    """The pieces of an LV. Raises Opaque if it is not linear, ImageError if it reaches beyond the PV."""
    found, at = [], 0
    for segment in segments:
        if segment["type"] != "striped" or segment["stripe_count"] != 1:
            raise Opaque(f"its volume {name:.40} is of a kind that kimbox does not read")
        extents, (_, first) = _number(segment["extent_count"]), segment["stripes"]
        _number(first)
        if _number(segment["start_extent"]) * unit != at or not 0 < extents <= count - first:
            raise ImageError(f"{_DAMAGED}: the volume {name} reaches beyond the disk")
        found.append(Segment(at, extents * unit, start + first * unit))
        at += extents * unit
    return found


def _check(volumes: dict[str, Volume], snapshots: list[Snapshot]) -> None:
    """Raises ImageError if two LVs share a piece, or a snapshot is one of nothing."""
    taken = sorted((s.place, s.place + s.size_bytes, v.name) for v in volumes.values() for s in v.segments)
    for (_, end, one), (start, _, two) in pairwise(taken):
        if start < end:
            raise ImageError(f"{_DAMAGED}: the volumes {one} and {two} lie over each other")
    for snapshot in snapshots:
        known = snapshot.store in volumes and snapshot.origin in volumes and snapshot.store != snapshot.origin
        if not known or snapshot.chunk_bytes not in CHUNKS_BYTES:
            raise ImageError(f"{_DAMAGED}: a snapshot of nothing")


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0 or value >= 1 << 53:
        raise ValueError("no number where one must be")
    return value


def _text(read: Read, size_bytes: int) -> str:
    """The text that counts now. Raises ImageError if label, header or text are not sound."""
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
    for start, length in areas[1]:
        if text := _text_in(read, start, length, size_bytes):
            return text
    raise ImageError(f"{_DAMAGED}: no area holds a text")


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


def _parse(text: str) -> dict[str, Any]:
    """LVM's text format: sections, numbers, quoted texts, lists. Raises ValueError or IndexError if it is none."""
    words = [match[1] for match in _WORD.finditer(text)]
    value, rest = _section(words, 0, 0)
    if rest != len(words):
        raise ValueError("a bracket too many")
    return value


def _section(words: list[str], at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    if depth > MAX_DEPTH:
        raise ValueError("sections too deep")
    while at < len(words) and words[at] != "}":
        name, sign = words[at], words[at + 1]
        if name in found:
            raise ValueError(f"{name:.40} is there twice")
        if sign == "{":
            found[name], at = _section(words, at + 2, depth + 1)
            if words[at] != "}":
                raise ValueError("a bracket is missing")
            at += 1
        elif sign == "=":
            found[name], at = _value(words, at + 2)
        else:
            raise ValueError("neither a value nor a section")
    return found, at


def _value(words: list[str], at: int) -> tuple[Any, int]:
    if words[at] != "[":
        return _scalar(words[at]), at + 1
    end = words.index("]", at)
    return [_scalar(word) for word in words[at + 1 : end] if word != ","], end + 1


def _scalar(word: str) -> str | int | float:
    if word.startswith('"'):
        return word[1:-1]
    return float(word) if "." in word else int(word)
