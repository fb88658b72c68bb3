"""Differences between two disks of one layout, by partition, LV and path of a file.

kimbox's own code reads the file systems. Nothing is mounted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import ranges, rawdisk, trees
from kimbox.image.disk.ext4 import content, directories, inodes
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.view import DiskView, Volume
from kimbox.spec.layout import Extent, Layout

#: Size of a block in the comparison, in bytes: the block size of the file systems.
BLOCK_BYTES = 4096

#: Number of bytes that are read at a time.
BATCH_BYTES = 1 << 20

#: Maximum number of blocks of a file system for which the file is searched. The other blocks are only counted.
MAX_TRACED = 2000


@attrs.frozen
class Difference:
    """A part of the disk that differs: its name, the number of different blocks, and the files that have them.

    `files`: the paths of the guest whose files differ, each with the aspects (see `trees.Aspect`). If it is empty,
    something else than the files differs, and `paths` has the files whose inode or blocks are concerned.
    """

    part: str
    blocks: int
    files: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    paths: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns the difference as lines of text."""
        files = [f"{path} ({' and '.join(aspects)})" for path, aspects in self.files.items()]
        found = (f"  {path}" for path in [*files, *self.paths])
        return [f"{self.part}: {self.blocks} blocks of {BLOCK_BYTES} bytes differ", *found]


def compare(
    old: Path, new: Path, layout: Layout, *, on_bytes: Callable[[int], None] = lambda _: None
) -> list[Difference]:
    """Returns every part of two raw disks that differs. Holes count as zeros.

    `on_bytes` is called with the offset up to which the disks were compared. Raises OSError if a disk cannot be read.
    """
    extents = list(parts(layout))
    prefixes = {"/boot": b"/boot", f"LV {layout.root.name}": b"", f"LV {layout.persistent.name}": b"/persistent"}
    offsets: dict[str, list[int]] = {extent.name: [] for extent in extents}
    with rawdisk.opened(old) as old_disk, rawdisk.opened(new) as new_disk:
        for offset in differing(old_disk, new_disk, on_bytes=on_bytes):
            extent = next((e for e in extents if e.offset_bytes <= offset < e.end_bytes), extents[-1])
            offsets[extent.name].append(offset - extent.offset_bytes)
        differences = []
        for extent in extents:
            if inside := offsets[extent.name]:
                volumes = _volume(old_disk, extent), _volume(new_disk, extent)
                prefix = prefixes.get(extent.name)
                files = {} if prefix is None else _different_trees(*volumes, prefix)
                paths = [] if prefix is None or files else _files(*volumes, inside)
                differences.append(Difference(extent.name, len(inside), files, tuple(paths)))
    return differences


def _different_trees(old: Volume, new: Volume, prefix: bytes) -> dict[str, tuple[str, ...]]:
    """Returns the files that differ, with the aspects; nothing if a file system is damaged."""
    try:
        different = trees.compare(old.file_system, new.file_system, prefix)
    except ImageError:
        return {}
    return {shown(path) or "/": tuple(map(str, aspects)) for path, aspects in different.items()}


def _volume(disk: DiskView, extent: Extent) -> Volume:
    """Returns a part of a disk by the layout of the build. The tables of the disk are not used: they may differ."""
    return disk.volume_at(extent.name, extent.offset_bytes, extent.size_bytes)


def parts(layout: Layout) -> Iterator[Extent]:
    """Yields the named parts of the disk, from its start to its end, without gaps."""
    yield Extent("partition table and boot loader", 0, layout.boot.offset_bytes)
    yield Extent("/boot", layout.boot.offset_bytes, layout.boot.size_bytes)
    first = layout.volumes[0].place.offset_bytes
    yield Extent("LVM label and metadata", layout.pv.offset_bytes, first - layout.pv.offset_bytes)
    for volume in layout.volumes:
        yield Extent(f"LV {volume.name}", volume.place.offset_bytes, volume.place.size_bytes)
    end = layout.volumes[-1].place.end_bytes
    yield Extent("the rest of the disk", end, max(layout.size_bytes - end, 0))


def differing(old: DiskView, new: DiskView, *, on_bytes: Callable[[int], None] = lambda _: None) -> Iterator[int]:
    """Yields the offsets of the blocks in which two disks differ, ascending. Holes of both disks are not read.

    If the sizes differ, the last byte of the larger disk is yielded last.
    """
    size = max(old.size_bytes, new.size_bytes)
    done = 0
    for start, end in ranges.merged([*old.written(), *new.written()]):
        at = max(start // BLOCK_BYTES * BLOCK_BYTES, done)
        while at < end:
            count = min(BATCH_BYTES, end - at)
            old_data, new_data = (disk.read(at, count).ljust(count, b"\0") for disk in (old, new))
            if old_data != new_data:
                for step in range(0, count, BLOCK_BYTES):
                    if old_data[step : step + BLOCK_BYTES] != new_data[step : step + BLOCK_BYTES]:
                        yield at + step
            at += count
            on_bytes(at)
        done = -(-at // BLOCK_BYTES) * BLOCK_BYTES
    if old.size_bytes != new.size_bytes:
        yield size - 1


def sha256_disk(disk: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Returns the hex digest that sha256sum(1) prints. Holes are not read.

    `on_bytes` is called with the offset up to which the disk was read.
    """
    zeros, digest, done = bytes(BATCH_BYTES), hashlib.sha256(), 0

    def skip(count: int) -> None:
        for _ in range(count // BATCH_BYTES):
            digest.update(zeros)
        digest.update(zeros[: count % BATCH_BYTES])

    with rawdisk.opened(disk) as view:
        for start, end in view.written():
            skip(start - done)
            for at in range(start, end, BATCH_BYTES):
                digest.update(view.read(at, min(BATCH_BYTES, end - at)))
                on_bytes(at)
            done = end
        skip(view.size_bytes - done)
    return digest.hexdigest()


def _files(old: Volume, new: Volume, offsets: list[int]) -> list[str]:
    """Returns the files of both disks that have different blocks, each with the aspects that differ."""
    aspects: dict[str, set[str]] = {}
    blocks = {offset // BLOCK_BYTES for offset in offsets[:MAX_TRACED]}
    for volume, other in ((old, new), (new, old)):
        for entry, aspect in _different_files(volume, other, blocks):
            aspects.setdefault(shown(entry.path) or "/", set()).add(aspect)
    lines = [f"{path} ({' and '.join(sorted(differing))})" for path, differing in sorted(aspects.items())]
    return lines + ([f"... {len(offsets) - MAX_TRACED} more blocks"] if len(offsets) > MAX_TRACED else [])


def _different_files(volume: Volume, other: Volume, blocks: set[int]) -> Iterator[tuple[Entry, str]]:
    """Yields the files whose inode differs from that of the other disk, or whose content is in one of these blocks.

    If the file system is damaged, the search ends at the damage.
    """
    read_other = inodes.cached(other.read)
    try:
        system = volume.file_system
        for entry in chain([directories.top(system)], _reserved_inodes(system), directories.walk(system)):
            at = inodes.inode_place(system, entry.inode.number)
            size = system.inode_bytes
            if at // BLOCK_BYTES in blocks and system.read(at, size) != read_other(at, size):
                yield entry, "inode"
            if _has_block(system, entry, blocks):
                yield entry, "content"
    except ImageError:
        return


def _reserved_inodes(system: FileSystem) -> Iterator[Entry]:
    """Yields the inodes of the file system itself, for example the journal. They have no names."""
    for number in range(1, inodes.FIRST_INODE):
        if number != inodes.ROOT_INODE:
            yield Entry(b"<inode %d>" % number, inodes.inode_of(system, number))


def _has_block(system: FileSystem, entry: Entry, blocks: set[int]) -> bool:
    """Whether a file or directory has one of these blocks (of BLOCK_BYTES); False if its extents are damaged."""
    unit = system.block_bytes
    if not (entry.inode.is_file or entry.inode.is_folder):
        return False
    try:
        for _, count, start in content.runs(system, entry.inode):
            first, last = start * unit // BLOCK_BYTES, ((start + count) * unit - 1) // BLOCK_BYTES
            if last - first < len(blocks):
                if not blocks.isdisjoint(range(first, last + 1)):
                    return True
            elif any(first <= block <= last for block in blocks):
                return True
    except ImageError:
        pass
    return False
