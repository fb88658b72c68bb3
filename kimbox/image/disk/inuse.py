"""Which bytes of a whole disk are in use: partitions, LVM, ext4, swap and snapshots, read without a kernel. Pure.

A part of unknown form counts as in use, and a note names it. Damage is an error. Free space of file systems, of the
volume group and of a snapshot's COW store, swapped pages and idle journals are not in use.
"""

from __future__ import annotations

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import ranges, view
from kimbox.image.disk.ext4 import usage
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ext4.usage import Opaque
from kimbox.image.disk.lvm.reader import Snapshot
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.sectors import SWAP_PAGE_BYTES
from kimbox.image.disk.view import DiskView, Partition, PhysicalVolume, Volume


@attrs.frozen
class InUse:
    """The bytes of a disk that a copy must keep."""

    size_bytes: int
    used: Ranges
    #: Bytes in use that are to read as zeros: the headers of snapshots that are dropped.
    zeros: Ranges
    #: Parts that count as in use because their form is unknown, in words.
    notes: tuple[str, ...]


def find(disk: DiskView, *, drop_snapshots: bool = False) -> InUse:
    """The bytes in use of a disk of any layout.

    With `drop_snapshots` every snapshot becomes empty, as at a resnap boot: its origin as it is now is what remains.
    Raises ImageError, naming the partition or volume, where something is damaged.
    """
    finder = _Finder(drop_snapshots)
    whole = [(0, disk.size_bytes)]
    parts = ranges.merged((p.volume.start_bytes, p.volume.end_bytes) for p in disk.partitions)
    used = ranges.without(whole, parts)
    zeros: Ranges = []
    for partition in disk.partitions:
        part, gone = finder.partition(partition)
        used += part
        zeros += gone
    return InUse(disk.size_bytes, ranges.merged(used), ranges.merged(zeros), tuple(finder.notes))


@attrs.define
class _Finder:
    """Reads partitions and volumes, and notes those of unknown form."""

    drop_snapshots: bool
    notes: list[str] = attrs.field(factory=list)

    def partition(self, partition: Partition) -> tuple[Ranges, Ranges]:
        """Byte ranges of the disk: those of a partition that are in use, and those of them that are to be zeros."""
        volume = partition.volume
        if not partition.is_pv:
            return volume.on_disk(self.content(volume.read, volume.size_bytes, volume.name)), []
        try:
            lvm = partition.lvm
        except Opaque as error:
            self.note(volume.name, error)
            return volume.on_disk([(0, volume.size_bytes)]), []
        except ImageError as error:
            raise ImageError(f"{volume.name}: {error.message}") from None
        return self.lvm(volume, lvm)

    def content(self, read: Read, size_bytes: int, name: str) -> Ranges:
        """Bytes in use of what holds a file system, swap, or anything else."""
        try:
            if view.is_swap(read, size_bytes):
                return [(0, SWAP_PAGE_BYTES)]
            if view.is_ext4(read, size_bytes):
                return usage.used(read, size_bytes)
        except Opaque as error:
            self.note(name, error)
        except ImageError as error:
            raise ImageError(f"{name}: {error.message}") from None
        return [(0, size_bytes)]

    def note(self, name: str, error: ImageError) -> None:
        """Records that a part counts as in use."""
        self.notes.append(f"{name}: {error.message}; all of it is kept")

    def lvm(self, pv: Volume, lvm: PhysicalVolume) -> tuple[Ranges, Ranges]:
        """As `partition`, of a PV: LVM's own bytes, and those of each LV. Extents that no LV has are free."""
        group = lvm.group
        used, zeros = pv.on_disk([(0, group.start_bytes), (group.end_bytes, pv.size_bytes)]), Ranges()
        stores = {snapshot.store for snapshot in group.snapshots}
        inside = {
            name: self.content(volume.read, volume.size_bytes, name)
            for name, volume in lvm.volumes.items()
            if name not in stores
        }
        for snapshot in group.snapshots:
            if snapshot.origin in stores:
                raise ImageError(f"{snapshot.store} is a snapshot of a snapshot")
            if self.drop_snapshots:
                inside[snapshot.store] = [(0, snapshot.chunk_bytes)]
                zeros += lvm.volumes[snapshot.store].on_disk(inside[snapshot.store])
            else:
                of_origin = inside[snapshot.origin]
                inside[snapshot.origin], inside[snapshot.store] = self.snapshot(lvm, snapshot, of_origin)
        for name, pieces in inside.items():
            used += lvm.volumes[name].on_disk(pieces)
        return ranges.merged(used), ranges.merged(zeros)

    def snapshot(self, lvm: PhysicalVolume, snapshot: Snapshot, of_origin: Ranges) -> tuple[Ranges, Ranges]:
        """Bytes in use of an origin and of its snapshot's store.

        Where the snapshot does not differ, it shows the bytes of the origin, whether the origin still uses them or not.
        """
        origin, store = lvm.volumes[snapshot.origin], lvm.volumes[snapshot.store]
        held = lvm.store(snapshot)
        if not held.moved:
            seen = of_origin if held.holds else []
        else:
            seen = self.content(held.view(origin.read, store.read), origin.size_bytes, snapshot.store)
        return ranges.merged([*of_origin, *ranges.without(seen, held.changed)]), held.used(seen)
