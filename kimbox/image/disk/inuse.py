"""Which bytes of a whole disk hold anything: partitions, LVM, ext4, swap and snapshots, read without a kernel. Pure.

What is not understood counts as used, and a note says so; what is damaged is an error. Free space of file systems, of
the volume group and of a snapshot's store, swapped pages and idle journals are not used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import ranges
from kimbox.image.disk.cowstore import Store
from kimbox.image.disk.ext4 import usage
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ext4.usage import Opaque
from kimbox.image.disk.lvm import reader
from kimbox.image.disk.lvm.reader import Group, Snapshot, Volume
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.sectors import SWAP_PAGE_BYTES
from kimbox.spec.layout import SECTOR_BYTES

#: Type of the MBR's one partition where a GPT tells of the real ones, and how that begins, in sector 1.
TYPE_GPT = 0xEE
GPT_MAGIC = b"EFI PART"
MAX_GPT_ENTRIES = 512

#: The end of a swap header's page; with saved memory of a sleeping machine it says something else.
SWAP_MAGIC = b"SWAPSPACE2"


@attrs.frozen
class InUse:
    """What of a disk has to be kept."""

    size_bytes: int
    used: Ranges
    #: Bytes in use that are to read as zeros: the headers of snapshots that are dropped.
    zeros: Ranges
    #: What counts as used because it could not be told, in words.
    notes: tuple[str, ...]


def find(read: Read, size_bytes: int, *, drop_snapshots: bool = False) -> InUse:
    """The bytes in use of a disk that nobody writes to.

    With `drop_snapshots` every snapshot becomes empty, as at a resnap boot: its origin as it is now is what remains.
    Raises ImageError, naming the partition or volume, where something is damaged.
    """
    finder = _Finder(drop_snapshots)
    parts = sorted(partitions(read, size_bytes))
    for (_, end), (start, _) in pairwise(parts):
        if start < end:
            raise ImageError("its partitions lie over each other")
    used = ranges.without([(0, size_bytes)], ranges.merged(parts))
    zeros: Ranges = []
    for number, (start, end) in enumerate(parts, start=1):
        part, gone = finder.partition(_at(read, start), end - start, f"partition {number}")
        used += ranges.shifted(part, start)
        zeros += ranges.shifted(gone, start)
    return InUse(size_bytes, ranges.merged(used), ranges.merged(zeros), tuple(finder.notes))


def partitions(read: Read, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Start and end of each partition, in bytes; none where there is no table. Raises ImageError for one beyond."""
    mbr = read(0, SECTOR_BYTES)
    if mbr[510:] != b"\x55\xaa":
        return
    kinds = [mbr[446 + 16 * index + 4] for index in range(4)]
    if TYPE_GPT in kinds:
        found = list(_gpt(read))
    else:
        found = [struct.unpack_from("<II", mbr, 446 + 16 * index + 8) for index in range(4) if kinds[index]]
        found = [(first, first + count) for first, count in found]
    for first, end in found:
        if not 0 < first < end <= size_bytes // SECTOR_BYTES:
            raise ImageError("its partition table names a partition beyond the disk")
        yield first * SECTOR_BYTES, end * SECTOR_BYTES


def _gpt(read: Read) -> Iterator[tuple[int, int]]:
    """First and end sector of each partition of a GPT."""
    header = read(SECTOR_BYTES, SECTOR_BYTES)
    place, count, size = struct.unpack_from("<QII", header, 72)
    if not header.startswith(GPT_MAGIC) or count > MAX_GPT_ENTRIES or not 128 <= size <= 4096 or place > 1 << 40:
        raise ImageError("its partition table is damaged")
    table = read(place * SECTOR_BYTES, count * size)
    for at in range(0, count * size, size):
        if any(table[at : at + 16]):
            first, last = struct.unpack_from("<QQ", table, at + 32)
            yield first, last + 1


@attrs.define
class _Finder:
    """Looks into partitions and volumes, and notes what is not understood."""

    drop_snapshots: bool
    notes: list[str] = attrs.field(factory=list)

    def partition(self, read: Read, size_bytes: int, name: str) -> tuple[Ranges, Ranges]:
        """Bytes in use of a partition, and those of them that are to be zeros."""
        if not reader.is_pv(read):
            return self.content(read, size_bytes, name), []
        try:
            group = reader.read_group(read, size_bytes)
        except Opaque as error:
            self.note(name, error)
            return [(0, size_bytes)], []
        except ImageError as error:
            raise ImageError(f"{name}: {error.message}") from None
        return self.group(read, size_bytes, group)

    def content(self, read: Read, size_bytes: int, name: str) -> Ranges:
        """Bytes in use of what holds a file system, swap, or anything else."""
        try:
            if size_bytes > SWAP_PAGE_BYTES and read(SWAP_PAGE_BYTES - 10, 10) == SWAP_MAGIC:
                return [(0, SWAP_PAGE_BYTES)]
            if size_bytes > SWAP_PAGE_BYTES and usage.is_ext4(read):
                return usage.used(read, size_bytes)
        except Opaque as error:
            self.note(name, error)
        except ImageError as error:
            raise ImageError(f"{name}: {error.message}") from None
        return [(0, size_bytes)]

    def note(self, name: str, error: ImageError) -> None:
        """Something counts as used."""
        self.notes.append(f"{name}: {error.message}; all of it is kept")

    def group(self, read: Read, size_bytes: int, group: Group) -> tuple[Ranges, Ranges]:
        """Bytes in use of a PV: LVM's own, and those of each LV. Extents that no LV has are free."""
        used, zeros = [(0, group.start_bytes), (group.end_bytes, size_bytes)], Ranges()
        stores = {snapshot.store for snapshot in group.snapshots}
        seen = {
            name: self.content(through(read, volume), volume.size_bytes, name)
            for name, volume in group.volumes.items()
            if name not in stores
        }
        for snapshot in group.snapshots:
            if snapshot.origin in stores:
                raise ImageError(f"{snapshot.store} is a snapshot of a snapshot")
            store = group.volumes[snapshot.store]
            if self.drop_snapshots:
                seen[snapshot.store] = [(0, snapshot.chunk_bytes)]
                zeros += _on_pv(store, seen[snapshot.store])
            else:
                origin = seen[snapshot.origin]
                seen[snapshot.origin], seen[snapshot.store] = self.snapshot(read, group, snapshot, origin)
        for name, pieces in seen.items():
            used += _on_pv(group.volumes[name], pieces)
        return ranges.merged(used), ranges.merged(zeros)

    def snapshot(self, read: Read, group: Group, snapshot: Snapshot, of_origin: Ranges) -> tuple[Ranges, Ranges]:
        """Bytes in use of an origin and of its snapshot's store.

        The snapshot shows what the origin has where it does not differ, be it in use there or not any more.
        """
        origin, store = group.volumes[snapshot.origin], group.volumes[snapshot.store]
        reads = through(read, origin), through(read, store)
        try:
            held = Store.parse(reads[1], store.size_bytes, snapshot.chunk_bytes, origin.size_bytes)
        except ImageError as error:
            raise ImageError(f"{snapshot.store}: {error.message}") from None
        if not held.moved:
            seen = of_origin if held.holds else []
        else:
            seen = self.content(held.view(*reads), origin.size_bytes, snapshot.store)
        return ranges.merged([*of_origin, *ranges.without(seen, held.changed)]), held.used(seen)


def _at(read: Read, start: int) -> Read:
    return lambda offset, size: read(start + offset, size)


def through(read: Read, volume: Volume) -> Read:
    """The bytes of an LV. Raises ImageError beyond its end."""

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


def _on_pv(volume: Volume, pieces: Ranges) -> Ranges:
    """Where on the PV pieces of an LV lie."""
    found = Ranges()
    for segment in volume.segments:
        inside = ranges.common(pieces, [(segment.offset, segment.offset + segment.size_bytes)])
        found += ranges.shifted(inside, segment.place - segment.offset)
    return found
