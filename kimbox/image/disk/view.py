"""One view of a disk: partition table, LVM, file systems, swap, the snapshot and its COW store. Pure.

Bytes come from a function: of a raw file (`rawdisk`) or an NBD server (`formats.nbd`). Each part is read and checked
once, when it is first asked for. Every byte may come from a hostile guest, so that each number is checked. Nobody may
write to the disk while a view is in use; after a write, `DiskView.reopened` gives a view that reads file systems again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import partitions, ranges
from kimbox.image.disk.cowstore import Store
from kimbox.image.disk.ext4 import inodes, usage
from kimbox.image.disk.ext4.inodes import FileSystem, Read
from kimbox.image.disk.lvm import reader
from kimbox.image.disk.lvm.reader import Group, Snapshot
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.sectors import SWAP_MAGIC, SWAP_PAGE_BYTES

#: How the label of the file system begins whose content outlives a new root.
PERSISTENT_LABEL = "kimbox-persist"

#: Keys of `Contents.mounted`: where the guest mounts a file system, the empty string for the root.
BOOT, ROOT, PERSISTENT = "/boot", "", "/persistent"


@attrs.frozen
class Volume:
    """A partition or an LV. `pieces`: offset on the disk and size in bytes, in the order of the volume."""

    name: str
    pieces: tuple[tuple[int, int], ...]
    read: Read

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.pieces)

    @property
    def start_bytes(self) -> int:
        """Offset on the disk of its first piece."""
        return self.pieces[0][0]

    def reopened(self) -> Volume:
        """The same volume for after a write: nothing that was read of it is used again."""
        return attrs.evolve(self)

    @property
    def end_bytes(self) -> int:
        """End on the disk of its last piece."""
        return sum(self.pieces[-1])

    @cached_property
    def file_system(self) -> FileSystem:
        """Its ext4 file system, on cached reads: it does not see what is written later. Raises ImageError."""
        try:
            return inodes.open_at(inodes.cached(self.read))
        except ImageError as error:
            raise ImageError(f"{self.name}: {error.message}", hint=error.hint) from None

    def on_disk(self, inside: Ranges) -> Ranges:
        """Where on the disk byte ranges of the volume lie."""
        found, at = Ranges(), 0
        for start, size in self.pieces:
            found += ranges.shifted(ranges.common(inside, [(at, at + size)]), start - at)
            at += size
        return ranges.merged(found)


def is_swap(read: Read, size_bytes: int) -> bool:
    """Whether a volume holds swap space; with a hibernated machine in it, it has another magic number."""
    return size_bytes > SWAP_PAGE_BYTES and read(SWAP_PAGE_BYTES - 10, 10) == SWAP_MAGIC


def is_ext4(read: Read, size_bytes: int) -> bool:
    """Whether a volume begins like an ext2, ext3 or ext4 file system."""
    return size_bytes > SWAP_PAGE_BYTES and usage.is_ext4(read)


@attrs.frozen
class PhysicalVolume:
    """LVM on a partition: the volume group, and its LVs by name."""

    group: Group
    volumes: dict[str, Volume]

    def store(self, snapshot: Snapshot) -> Store:
        """The COW store of a snapshot. Raises ImageError if it is damaged."""
        store, origin = self.volumes[snapshot.store], self.volumes[snapshot.origin]
        try:
            return Store.parse(store.read, store.size_bytes, snapshot.chunk_bytes, origin.size_bytes)
        except ImageError as error:
            raise ImageError(f"{snapshot.store}: {error.message}") from None


@attrs.frozen
class Partition:
    """A partition, its number in the table from 1, and its MBR type (None in a GPT)."""

    number: int
    type: int | None
    volume: Volume

    @property
    def is_pv(self) -> bool:
        """Whether LVM takes it for a physical volume."""
        return reader.is_pv(self.volume.read)

    @cached_property
    def lvm(self) -> PhysicalVolume:
        """Its volume group. Raises Opaque where kimbox does not know its form, ImageError if it is damaged or none."""
        read, start = self.volume.read, self.volume.start_bytes
        group = reader.read_group(read, self.volume.size_bytes)
        volumes = {
            name: Volume(name, tuple((start + s.place, s.size_bytes) for s in lv.segments), reader.through(read, lv))
            for name, lv in group.volumes.items()
        }
        return PhysicalVolume(group, volumes)


@attrs.frozen
class _Tables:
    """What no write to a file system changes: the partition table, and LVM's metadata below it."""

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
    """What the volumes of a disk of kimbox's layout hold.

    `mounted`: volumes with a file system, by where the guest mounts them; others by `volume NAME:`. `store`: the LV of
    the snapshot's COW store. `unknown`: volumes that hold neither a file system nor swap space.
    """

    mounted: dict[str, Volume]
    swaps: tuple[Volume, ...]
    store: Volume
    unknown: tuple[Volume, ...]


@attrs.frozen
class DiskView:
    """A disk of `size_bytes` whose bytes `read` returns. `partitions` and `inuse.find` work for any layout.

    `boot`, `root` and `contents` are for kimbox's layout: /boot and a PV, with root as the origin of a snapshot. They
    raise ImageError where the disk has another one.
    """

    read: Read
    size_bytes: int
    _tables: _Tables
    _written: Callable[[], Ranges] | None = None

    @classmethod
    def of(cls, read: Read, size_bytes: int, written: Callable[[], Ranges] | None = None) -> DiskView:
        """A view of a disk; nothing is read yet. `written` returns the byte ranges that are not holes, if known."""
        return cls(read, size_bytes, _Tables(read, size_bytes), written)

    def written(self) -> Ranges:
        """Byte ranges that may hold something else than zeros."""
        return [(0, self.size_bytes)] if self._written is None else self._written()

    def reopened(self) -> DiskView:
        """A view for after a write into file systems or swap: only partition table and LVM metadata are kept."""
        return attrs.evolve(self)

    def volume_at(self, name: str, start_bytes: int, size_bytes: int) -> Volume:
        """A byte range of the disk as a volume, whatever the tables of the disk say."""
        return Volume(name, ((start_bytes, size_bytes),), _from(self.read, start_bytes))

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """In the order of the disk; none where there is no table. Raises ImageError if the table is damaged."""
        return self._tables.partitions

    @property
    def boot(self) -> Volume:
        return self._layout[0]

    @property
    def root(self) -> Volume:
        """The LV of the root: in one piece."""
        return self._layout[1]

    def check_layout(self) -> None:
        """Raises ImageError if the disk does not have kimbox's layout."""
        _ = self._layout

    @cached_property
    def _layout(self) -> tuple[Volume, Volume]:
        """/boot and root."""
        try:
            if len(self.partitions) != 2:
                raise ImageError(f"it has {len(self.partitions)} partitions, not two")
            boot, pv = self.partitions
            lvm = pv.lvm
            root = lvm.volumes[root_of(lvm.group)]
        except ImageError as error:
            raise ImageError(
                f"the disk has not the layout of kimbox's images: {error.message}",
                hint="a machine whose image kimbox built, or packaged, can be packaged",
            ) from None
        return attrs.evolve(boot.volume, name=BOOT), attrs.evolve(root)

    @cached_property
    def contents(self) -> Contents:
        """What the volumes hold. Raises ImageError for more snapshots than root's, and a file system not readable."""
        boot, root = self._layout
        lvm = self.partitions[1].lvm
        if len(lvm.group.snapshots) != 1:
            raise ImageError("it has more snapshots than the one of root")
        (snapshot,) = lvm.group.snapshots
        mounted, swaps, unknown = {BOOT: boot, ROOT: root}, [], []
        for name, lv in lvm.volumes.items():
            if name in (snapshot.store, snapshot.origin):
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
    """The name of root's LV: the origin of the snapshot. Raises ImageError if it is not known, or not in one piece.

    A user may have made more snapshots, of root and of other volumes; kimbox puts root at the first extent.
    """
    origins = {snapshot.origin: group.volumes[snapshot.origin].segments for snapshot in group.snapshots}
    if len(origins) > 1:
        origins = {name: pieces for name, pieces in origins.items() if pieces[0].place == group.start_bytes}
    if len(origins) != 1:
        raise ImageError("it has no volume root with a snapshot")
    ((name, pieces),) = origins.items()
    if len(pieces) != 1:
        raise ImageError(f"the volume {name} lies in {len(pieces)} pieces")
    return name


def _from(read: Read, start: int) -> Read:
    return lambda offset, size: read(start + offset, size)
