"""The layout of the disk: from the Disk of a spec to byte offsets, without any input or output.

    sector 0            MBR: boot code, disk signature, two partitions
    sector 1 ..         GRUB's core image, in the gap before the first partition
    1 MiB               partition 1: /boot, ext4, active
    after it            partition 2: the PV (type 0x8e): label, metadata area, then extents of 4 MiB
        extents         root, persistent, swap, snapshot, in this order, each contiguous; then, if there is room, the
                        volume in which the guest keeps a provisioned root (docs/resnap.md)

The layout depends only on the spec, so the host finds grubenv and every LV without help from the guest.
"""

from __future__ import annotations

import attrs

from kimbox.errors import ImageError
from kimbox.spec.model import Disk
from kimbox.spec.rules import MAX_DM_NAME_CHARACTERS

SECTOR_BYTES = 512
MIB = 1 << 20

#: Alignment of partitions: the default of current partitioning tools.
ALIGN_BYTES = MIB

#: LVM's default physical extent size.
EXTENT_BYTES = 4 * MIB

#: Offset of the first extent in the PV, after label and metadata area. LVM's default (`pe_start`).
PE_START_BYTES = MIB

#: Chunk size of the root snapshot. The first sequential write is three times as fast as with the 4 KiB of lvcreate;
#: larger chunks gain little (bench.chunks; docs/resnap.md has the figures).
SNAPSHOT_CHUNK_BYTES = 64 << 10

#: Size of an exception in the metadata of a snapshot (Linux, drivers/md/dm-snap-persistent.c: struct disk_exception).
EXCEPTION_BYTES = 16


#: Suffix of the name of the snapshot: the volume in which the guest keeps a provisioned root. The initramfs and
#: /usr/lib/kimbox/kept find the volume by this name.
KEPT_SUFFIX = "_kept"

#: Smallest volume for a kept root. The changes of a small provisioning fit into it.
MIN_KEPT_BYTES = 128 * MIB


@attrs.frozen
class Extent:
    """A named, contiguous range of the disk."""

    name: str
    offset_bytes: int
    size_bytes: int

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.size_bytes


@attrs.frozen
class LogicalVolume:
    """An LV of one segment: its first extent in the PV, its number of extents, and its range of the disk."""

    name: str
    first_extent: int
    extents: int
    place: Extent


@attrs.frozen
class Layout:
    """The partitions and volumes of a disk."""

    size_bytes: int
    boot: Extent
    pv: Extent
    volume_group: str
    root: LogicalVolume
    persistent: LogicalVolume
    swap: LogicalVolume | None
    snapshot: LogicalVolume
    kept: LogicalVolume | None = None

    @property
    def volumes(self) -> tuple[LogicalVolume, ...]:
        """Returns every LV, in their order on the PV."""
        return tuple(v for v in (self.root, self.persistent, self.swap, self.snapshot, self.kept) if v)

    @property
    def pv_extents(self) -> int:
        """Returns the number of whole extents of the PV."""
        return (self.pv.size_bytes - PE_START_BYTES) // EXTENT_BYTES

    @property
    def snapshot_may_fill(self) -> bool:
        """Whether the snapshot is too small to hold a change of every chunk of root."""
        return self.snapshot.place.size_bytes < full_snapshot_bytes(self.root.place.size_bytes)


def round_up(value: int, unit: int) -> int:
    """Returns the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def dm_name(volume_group: str, volume: str) -> str:
    """Returns the device-mapper name of an LV: each hyphen is doubled (`vagrant--pipeline-root`)."""
    return f"{volume_group.replace('-', '--')}-{volume.replace('-', '--')}"


def kept_name(snapshot: str) -> str:
    """Returns the name of the LV for a kept root, from the name of the snapshot."""
    return snapshot + KEPT_SUFFIX


def full_snapshot_bytes(origin_bytes: int) -> int:
    """Returns the size of a snapshot that holds a change of every chunk of its origin, so that it never overflows.

    A persistent snapshot stores a header chunk, then metadata chunks each followed by the data chunks they describe
    (Linux, Documentation/admin-guide/device-mapper/snapshot.rst).
    """
    chunks = -(-origin_bytes // SNAPSHOT_CHUNK_BYTES)
    per_area = SNAPSHOT_CHUNK_BYTES // EXCEPTION_BYTES
    areas = -(-chunks // per_area) + 1
    return round_up((chunks + areas + 1) * SNAPSHOT_CHUNK_BYTES, EXTENT_BYTES)


def shares(disk: Disk) -> dict[str, int]:
    """Returns the size of each part of the disk in bytes, by its key in the spec. The disk needs at least their sum.

    The snapshot is limited to the size that it can use.
    """
    root = round_up(disk.root.size_bytes or 0, EXTENT_BYTES)
    full = full_snapshot_bytes(root)
    return {
        "boot": round_up(disk.boot_bytes, ALIGN_BYTES),
        "root": root,
        "persistent": round_up(disk.persistent.size_bytes or 0, EXTENT_BYTES),
        "swap": round_up(disk.swap.size_bytes or 0, EXTENT_BYTES) if disk.swap else 0,
        "root_snap": min(round_up(disk.snapshot.size_bytes or full, EXTENT_BYTES), full),
        "partition table and LVM": ALIGN_BYTES + PE_START_BYTES,
    }


def plan(disk: Disk) -> Layout:
    """Returns the layout of a disk. Raises ImageError if it is too small (`load_box` reports that with its line)."""
    parts = shares(disk)
    if sum(parts.values()) > disk.size_bytes:
        need = round_up(sum(parts.values()), EXTENT_BYTES) // MIB
        raise ImageError(
            f"the disk of {disk.size_bytes // MIB} MiB is too small for its volumes, which need {need} MiB",
            code="disk-too-small",
            hint=f"set `disk: {{size: {need}MiB}}` in the spec",
        )
    size = disk.size_bytes // SECTOR_BYTES * SECTOR_BYTES
    boot = Extent("boot", ALIGN_BYTES, parts["boot"])
    pv = Extent("pv", boot.end_bytes, size - boot.end_bytes)
    next_extent = 0

    def allot(name: str, size_bytes: int) -> LogicalVolume:
        nonlocal next_extent
        place = Extent(name, pv.offset_bytes + PE_START_BYTES + next_extent * EXTENT_BYTES, size_bytes)
        volume = LogicalVolume(name, next_extent, size_bytes // EXTENT_BYTES, place)
        next_extent += volume.extents
        return volume

    root = allot(disk.root.name, parts["root"])
    persistent = allot(disk.persistent.name, parts["persistent"])
    swap = allot(disk.swap.name, parts["swap"]) if disk.swap else None
    snapshot = allot(disk.snapshot.name, parts["root_snap"])
    layout = Layout(size, boot, pv, disk.volume_group, root, persistent, swap, snapshot)
    kept_bytes = _kept_bytes(layout)
    return attrs.evolve(layout, kept=allot(kept_name(snapshot.name), kept_bytes)) if kept_bytes else layout


def _kept_bytes(layout: Layout) -> int:
    """Returns the size of the volume for a kept root: half of the free extents. 0 if that is too small.

    The other half stays free for the volumes of a user. A snapshot that may fill needs all of it, to be extended.
    """
    if layout.snapshot_may_fill:
        return 0
    free_extents = layout.pv_extents - sum(volume.extents for volume in layout.volumes)
    kept_bytes = min(free_extents // 2 * EXTENT_BYTES, layout.snapshot.place.size_bytes)
    name = dm_name(layout.volume_group, kept_name(layout.snapshot.name))
    return kept_bytes if kept_bytes >= MIN_KEPT_BYTES and len(name) <= MAX_DM_NAME_CHARACTERS else 0
