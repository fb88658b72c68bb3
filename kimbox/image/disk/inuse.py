"""Finds the bytes of a disk that are in use: partitions, LVM, ext4, swap and snapshots. No kernel is needed. Pure.

A part with an unknown form counts as in use, and a note names it. Damage is an error. Not in use are the free space of
file systems, of the volume group and of a snapshot's COW store, swapped pages, and journals without entries.
"""

from __future__ import annotations

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import faults, keptroot, ranges, view
from kimbox.image.disk.ext4 import usage
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.faults import UnknownUsage
from kimbox.image.disk.lvm.reader import Snapshot
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.sectors import SWAP_PAGE_BYTES
from kimbox.image.disk.view import DiskView, Partition, PhysicalVolume, Volume
from kimbox.spec.layout import SECTOR_BYTES


@attrs.frozen
class InUse:
    """The bytes of a disk that a copy must keep."""

    size_bytes: int
    used: Ranges
    #: Bytes in use that must read as zeros in the copy: the headers of snapshots and kept roots that are dropped.
    zeros: Ranges
    #: One sentence for each part that counts as in use because its form is unknown.
    notes: tuple[str, ...]


def find(disk: DiskView, *, drop_snapshots: bool = False, drop_kept: bool = False) -> InUse:
    """Returns the bytes in use of a disk of any layout.

    With `drop_snapshots` every snapshot is empty in the copy, as after a resnap boot. The copy has the origin as it is
    now. With `drop_kept` the copy has no kept root. Raises ImageError with the name of the partition or volume if
    something is damaged.
    """
    finder = _Finder(drop_snapshots, drop_kept)
    partitions = ranges.merged((p.volume.start_bytes, p.volume.end_bytes) for p in disk.partitions)
    used = ranges.without([(0, disk.size_bytes)], partitions)
    zeros: Ranges = []
    for partition in disk.partitions:
        partition_used, partition_zeros = finder.partition(partition)
        used += partition_used
        zeros += partition_zeros
    return InUse(disk.size_bytes, ranges.merged(used), ranges.merged(zeros), tuple(finder.notes))


@attrs.define
class _Finder:
    """Reads partitions and volumes, and collects notes on those with an unknown form."""

    drop_snapshots: bool
    drop_kept: bool
    notes: list[str] = attrs.field(factory=list)

    def partition(self, partition: Partition) -> tuple[Ranges, Ranges]:
        """Returns two sets of bytes of the disk: the bytes of a partition in use, and those of them to set to zero."""
        volume = partition.volume
        if not partition.is_pv:
            return volume.on_disk(self.content(volume.read, volume.size_bytes, volume.name)), []
        try:
            lvm = partition.lvm
        except UnknownUsage as error:
            self.note(volume.name, error)
            return volume.on_disk([(0, volume.size_bytes)]), []
        except ImageError as error:
            raise faults.in_volume(volume.name, error) from None
        return self.lvm(volume, lvm)

    def content(self, read: Read, size_bytes: int, name: str) -> Ranges:
        """Returns the bytes in use of a volume with a file system, swap, or unknown content."""
        try:
            if view.is_swap(read, size_bytes):
                return [(0, SWAP_PAGE_BYTES)]
            if view.is_ext4(read, size_bytes):
                return usage.used(read, size_bytes)
        except UnknownUsage as error:
            self.note(name, error)
        except ImageError as error:
            raise faults.in_volume(name, error) from None
        return [(0, size_bytes)]

    def note(self, name: str, error: UnknownUsage) -> None:
        """Records that a part counts as in use, with the reason."""
        self.notes.append(f"{name}: {error.message}; all of it is copied")

    def lvm(self, pv: Volume, lvm: PhysicalVolume) -> tuple[Ranges, Ranges]:
        """Returns the same as `partition`, for a PV: the bytes of LVM itself and of each LV. Other extents are free."""
        group = lvm.group
        used, zeros = pv.on_disk([(0, group.start_bytes), (group.end_bytes, pv.size_bytes)]), Ranges()
        stores = {snapshot.store for snapshot in group.snapshots}
        used_of = {
            name: self.content(volume.read, volume.size_bytes, name)
            for name, volume in lvm.volumes.items()
            if name not in stores and not keptroot.is_kept(name, stores)
        }
        for name, volume in lvm.volumes.items():
            if keptroot.is_kept(name, stores):
                used_of[name] = [(0, keptroot.used_bytes(volume.read, volume.size_bytes))]
                if self.drop_kept:
                    used_of[name] = [(0, SECTOR_BYTES)]
                    zeros += volume.on_disk(used_of[name])
        for snapshot in group.snapshots:
            if snapshot.origin in stores:
                raise faults.unsupported("nested-snapshot", f"{snapshot.store} is a snapshot of a snapshot")
            if self.drop_snapshots:
                used_of[snapshot.store] = [(0, snapshot.chunk_bytes)]
                zeros += lvm.volumes[snapshot.store].on_disk(used_of[snapshot.store])
            else:
                of_origin = used_of[snapshot.origin]
                used_of[snapshot.origin], used_of[snapshot.store] = self.snapshot(lvm, snapshot, of_origin)
        for name, pieces in used_of.items():
            used += lvm.volumes[name].on_disk(pieces)
        return ranges.merged(used), ranges.merged(zeros)

    def snapshot(self, lvm: PhysicalVolume, snapshot: Snapshot, of_origin: Ranges) -> tuple[Ranges, Ranges]:
        """Returns the bytes in use of an origin and of the COW store of its snapshot.

        The snapshot reads unchanged chunks from the origin. They are in use even if they are free in the origin.
        """
        origin, store = lvm.volumes[snapshot.origin], lvm.volumes[snapshot.store]
        cow = lvm.store(snapshot)
        if not cow.exceptions:
            in_snapshot = of_origin if cow.is_valid else []
        else:
            in_snapshot = self.content(cow.view(origin.read, store.read), origin.size_bytes, snapshot.store)
        return ranges.merged([*of_origin, *ranges.without(in_snapshot, cow.changed)]), cow.used(in_snapshot)
