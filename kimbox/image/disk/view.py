"""The view of a disk: partition table, LVM, file systems, swap, the snapshot and its COW store. Pure.

A function returns the bytes, from a raw file (`rawdisk`) or from an NBD server (`nbd`). Each part is read and
checked once, at its first use. Every byte may come from a hostile guest. Therefore each number is checked. No process
may write to the disk while a view is in use. After a write, `DiskView.reopened` returns a view that reads the file
systems again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import faults, keptroot, partitions, ranges
from kimbox.image.disk.cowstore import Store
from kimbox.image.disk.ext4 import inodes, usage
from kimbox.image.disk.ext4.inodes import FileSystem, Read
from kimbox.image.disk.lvm import reader
from kimbox.image.disk.lvm.reader import Group, Snapshot
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.sectors import SWAP_MAGIC, SWAP_PAGE_BYTES

#: Start of the label of the file system that keeps its content when the root is replaced.
PERSISTENT_LABEL = "kimbox-persist"

#: Keys of `Contents.mounted`: the mount point of a file system in the guest; the empty string is the root.
BOOT, ROOT, PERSISTENT = "/boot", "", "/persistent"


@attrs.frozen
class Volume:
    """A partition or an LV. `pieces`: offset on the disk and size of each piece, in bytes and in the volume's order."""

    name: str
    pieces: tuple[tuple[int, int], ...]
    read: Read

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.pieces)

    @property
    def start_bytes(self) -> int:
        """Offset on the disk of the first piece."""
        return self.pieces[0][0]

    def reopened(self) -> Volume:
        """Returns the same volume without any cached content, for use after a write."""
        return attrs.evolve(self)

    @property
    def end_bytes(self) -> int:
        """End on the disk of the last piece."""
        return sum(self.pieces[-1])

    @cached_property
    def file_system(self) -> FileSystem:
        """The ext4 file system of the volume. Its reads are cached, so that later writes are not visible.

        Raises ImageError if the volume has no file system that kimbox reads.
        """
        try:
            return inodes.open_at(inodes.cached(self.read))
        except ImageError as error:
            raise faults.in_volume(self.name, error) from None

    def on_disk(self, inside: Ranges) -> Ranges:
        """Returns the byte ranges of the disk that byte ranges of the volume occupy."""
        occupied, at = Ranges(), 0
        for start, size in self.pieces:
            occupied += ranges.shifted(ranges.common(inside, [(at, at + size)]), start - at)
            at += size
        return ranges.merged(occupied)


def is_swap(read: Read, size_bytes: int) -> bool:
    """Whether a volume has swap space. False if a machine hibernated into it, because then the magic number differs."""
    return size_bytes > SWAP_PAGE_BYTES and read(SWAP_PAGE_BYTES - 10, 10) == SWAP_MAGIC


def is_ext4(read: Read, size_bytes: int) -> bool:
    """Whether a volume has the magic number of ext2, ext3 and ext4."""
    return size_bytes > SWAP_PAGE_BYTES and usage.is_ext4(read)


@attrs.frozen
class PhysicalVolume:
    """LVM on a partition: the volume group and its LVs, by name."""

    group: Group
    volumes: dict[str, Volume]

    def store(self, snapshot: Snapshot) -> Store:
        """Returns the COW store of a snapshot. Raises ImageError if it is damaged."""
        store, origin = self.volumes[snapshot.store], self.volumes[snapshot.origin]
        try:
            return Store.parse(store.read, store.size_bytes, snapshot.chunk_bytes, origin.size_bytes)
        except ImageError as error:
            raise faults.in_volume(snapshot.store, error) from None


@attrs.frozen
class Partition:
    """A partition, its number in the table from 1, and its MBR type (None in a GPT)."""

    number: int
    type: int | None
    volume: Volume

    @property
    def is_pv(self) -> bool:
        """Whether it has the label of an LVM physical volume."""
        return reader.is_pv(self.volume.read)

    @cached_property
    def lvm(self) -> PhysicalVolume:
        """The volume group of the partition.

        Raises UnknownUsage if kimbox does not know its form, ImageError if it is damaged or there is no LVM.
        """
        read, start = self.volume.read, self.volume.start_bytes
        group = reader.read_group(read, self.volume.size_bytes)
        volumes = {
            name: Volume(
                name,
                tuple((start + segment.pv_offset_bytes, segment.size_bytes) for segment in lv.segments),
                reader.through(read, lv),
            )
            for name, lv in group.volumes.items()
        }
        return PhysicalVolume(group, volumes)


@attrs.frozen
class _Tables:
    """The partition table and LVM's metadata, which a write to a file system does not change."""

    read: Read
    size_bytes: int

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(
            Partition(
                entry.number,
                entry.type,
                Volume(
                    f"partition {entry.number}",
                    ((entry.start_bytes, entry.end_bytes - entry.start_bytes),),
                    _from(self.read, entry.start_bytes),
                ),
            )
            for entry in partitions.entries(self.read, self.size_bytes)
        )


@attrs.frozen
class Contents:
    """The content of the volumes of a disk of kimbox's layout.

    `mounted`: volumes with a file system, by their mount point in the guest. A volume that the user added has the key
    `volume NAME:`. `store`: the LV with the COW store of the snapshot. `unknown`: volumes that have neither a file
    system nor swap space.
    """

    mounted: dict[str, Volume]
    swaps: tuple[Volume, ...]
    store: Volume
    unknown: tuple[Volume, ...]


@attrs.frozen
class DiskView:
    """A disk of `size_bytes` whose bytes `read` returns. `partitions` and `inuse.find` work for any layout.

    `boot`, `root` and `contents` are for kimbox's layout: /boot and a PV, with root as the origin of a snapshot. They
    raise ImageError if the disk has another layout.
    """

    read: Read
    size_bytes: int
    _tables: _Tables
    _written: Callable[[], Ranges] | None = None

    @classmethod
    def of(cls, read: Read, size_bytes: int, written: Callable[[], Ranges] | None = None) -> DiskView:
        """Returns a view of a disk and reads nothing yet.

        `written` returns the byte ranges that are not holes. None: holes are not known.
        """
        return cls(read, size_bytes, _Tables(read, size_bytes), written)

    def written(self) -> Ranges:
        """Returns the byte ranges that may contain other bytes than zeros."""
        return [(0, self.size_bytes)] if self._written is None else self._written()

    def reopened(self) -> DiskView:
        """Returns a view for use after a write to file systems or swap. It keeps only partition table and LVM."""
        return attrs.evolve(self)

    def volume_at(self, name: str, start_bytes: int, size_bytes: int) -> Volume:
        """Returns a byte range of the disk as a volume. Partition table and LVM metadata are not used."""
        return Volume(name, ((start_bytes, size_bytes),), _from(self.read, start_bytes))

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions in the order of the disk; none without a table. Raises ImageError if the table is damaged."""
        return self._tables.partitions

    @property
    def boot(self) -> Volume:
        return self._layout[0]

    @property
    def root(self) -> Volume:
        """The LV of the root, which is in one piece."""
        return self._layout[1]

    @cached_property
    def snapshot_of_root(self) -> Volume:
        """Root with the changes in its snapshot, as a boot that keeps its changes has it.

        It is root itself if the snapshot is empty. Raises ImageError for another layout, or if the kernel invalidated
        the snapshot.
        """
        root, lvm = self._layout[1], self.partitions[1].lvm
        snapshots = [snapshot for snapshot in lvm.group.snapshots if snapshot.origin == root.name]
        if len(snapshots) != 1:
            raise faults.other_layout("number-of-snapshots", f"root has {len(snapshots)} LVM snapshots instead of 1")
        store = lvm.store(snapshots[0])
        if not store.is_valid:
            raise faults.damaged("invalidated", "the kernel invalidated the snapshot", part=faults.SNAPSHOT_STORE)
        read = store.view(root.read, lvm.volumes[snapshots[0].store].read)
        return attrs.evolve(root, read=read)

    def check_layout(self) -> None:
        """Raises ImageError if the disk does not have kimbox's layout."""
        _ = self._layout

    @cached_property
    def _layout(self) -> tuple[Volume, Volume]:
        """The volumes of /boot and root. Raises ImageError (`disk-layout`) if the disk has another layout."""
        try:
            if len(self.partitions) != 2:
                raise faults.other_layout("number-of-partitions", f"{len(self.partitions)} partitions instead of 2")
            boot, pv = self.partitions
            lvm = pv.lvm
            root = lvm.volumes[root_of(lvm.group)]
        except ImageError as error:
            raise ImageError(
                f"the disk does not have the layout of kimbox's images: {error.message}",
                code="disk-layout",
                hint="only images that kimbox built or packaged have this layout",
                fields=error.fields,
            ) from None
        return attrs.evolve(boot.volume, name=BOOT), attrs.evolve(root)

    @property
    def kept(self) -> Volume | None:
        """The volume for a kept root; None if there is none. Raises ImageError if the disk has another layout."""
        self.check_layout()
        lvm = self.partitions[1].lvm
        stores = [snapshot.store for snapshot in lvm.group.snapshots]
        return next((volume for name, volume in lvm.volumes.items() if keptroot.is_kept(name, stores)), None)

    @cached_property
    def contents(self) -> Contents:
        """The content of the volumes.

        Raises ImageError if there is another snapshot than the one of root, or a file system cannot be read.
        """
        boot, root = self._layout
        lvm = self.partitions[1].lvm
        if len(lvm.group.snapshots) != 1:
            raise faults.other_layout(
                "number-of-snapshots", f"the disk has {len(lvm.group.snapshots)} LVM snapshots instead of 1"
            )
        (snapshot,) = lvm.group.snapshots
        mounted, swaps, unknown = {BOOT: boot, ROOT: root}, [], []
        for name, lv in lvm.volumes.items():
            if name in (snapshot.store, snapshot.origin) or keptroot.is_kept(name, (snapshot.store,)):
                continue
            volume = attrs.evolve(lv)
            if is_swap(lv.read, lv.size_bytes):
                swaps.append(volume)
            elif not is_ext4(lv.read, lv.size_bytes):
                unknown.append(volume)
            elif PERSISTENT not in mounted and volume.file_system.label.startswith(PERSISTENT_LABEL):
                mounted[PERSISTENT] = volume
            else:
                mounted[f"volume {name}:"] = volume
        for volume in mounted.values():
            _ = volume.file_system  # raises ImageError if it cannot be read
        return Contents(mounted, tuple(swaps), lvm.volumes[snapshot.store], tuple(unknown))


def root_of(group: Group) -> str:
    """Returns the name of root's LV: the origin of the snapshot.

    If a user created more snapshots, root is the origin at the first extent, where kimbox puts it. A root that has
    grown is in several pieces. Raises ImageError if there is no such origin.
    """
    origins = {snapshot.origin: group.volumes[snapshot.origin].segments for snapshot in group.snapshots}
    if len(origins) > 1:
        origins = {name: pieces for name, pieces in origins.items() if pieces[0].pv_offset_bytes == group.start_bytes}
    if len(origins) != 1:
        raise faults.other_layout("no-root-snapshot", "no root volume with a snapshot")
    (name,) = origins
    return name


def _from(read: Read, start: int) -> Read:
    return lambda offset, size: read(start + offset, size)
