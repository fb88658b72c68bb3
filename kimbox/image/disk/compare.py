"""Where two disks of one layout differ, in the terms of that layout: partition, LV, path of a file.

The file systems are read by kimbox's own code, which mounts nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import ranges, rawdisk
from kimbox.image.disk.ext4 import content, directories, inodes
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.view import DiskView, Volume
from kimbox.spec.layout import Extent, Layout

#: Disks are compared in blocks of the file systems' own size.
BLOCK_BYTES = 4096

#: Blocks that are read at a time.
BATCH_BYTES = 1 << 20

#: No more blocks of a file system are traced to files; the rest is counted.
MAX_TRACED = 2000


@attrs.frozen
class Difference:
    """A part of the disk that differs: its name, how many blocks, and the files that they belong to, if any."""

    part: str
    blocks: int
    paths: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.part}: {self.blocks} blocks of {BLOCK_BYTES} bytes differ", *(f"  {p}" for p in self.paths)]


def compare(
    old: Path, new: Path, layout: Layout, *, on_bytes: Callable[[int], None] = lambda _: None
) -> list[Difference]:
    """Every part of two raw disks that differs. Holes count as zeros. Raises OSError if one cannot be read."""
    places = list(parts(layout))
    offsets: dict[str, list[int]] = {place.name: [] for place in places}
    with rawdisk.opened(old) as one, rawdisk.opened(new) as two:
        for offset in differing(one, two, on_bytes=on_bytes):
            place = next((p for p in places if p.offset_bytes <= offset < p.end_bytes), places[-1])
            offsets[place.name].append(offset - place.offset_bytes)
        differences = []
        for place in places:
            if inside := offsets[place.name]:
                is_ext4 = place.name in ("/boot", f"LV {layout.root.name}", f"LV {layout.persistent.name}")
                files = _files(_volume(one, place), _volume(two, place), inside) if is_ext4 else []
                differences.append(Difference(place.name, len(inside), tuple(files)))
    return differences


def _volume(disk: DiskView, place: Extent) -> Volume:
    """A part of a disk, by the layout that it was built with: its own tables may be what differs."""
    return disk.volume_at(place.name, place.offset_bytes, place.size_bytes)


def parts(layout: Layout) -> Iterator[Extent]:
    """The whole disk, in named parts, from its start to its end."""
    yield Extent("partition table and boot loader", 0, layout.boot.offset_bytes)
    yield Extent("/boot", layout.boot.offset_bytes, layout.boot.size_bytes)
    first = layout.volumes[0].place.offset_bytes
    yield Extent("LVM label and metadata", layout.pv.offset_bytes, first - layout.pv.offset_bytes)
    for volume in layout.volumes:
        yield Extent(f"LV {volume.name}", volume.place.offset_bytes, volume.place.size_bytes)
    end = layout.volumes[-1].place.end_bytes
    yield Extent("the rest of the disk", end, max(layout.size_bytes - end, 0))


def differing(old: DiskView, new: DiskView, *, on_bytes: Callable[[int], None] = lambda _: None) -> Iterator[int]:
    """Offsets of the blocks in which two disks differ, ascending; only what is not a hole in both is read."""
    size = max(old.size_bytes, new.size_bytes)
    done = 0
    for start, end in ranges.merged([*old.written(), *new.written()]):
        at = max(start // BLOCK_BYTES * BLOCK_BYTES, done)
        while at < end:
            count = min(BATCH_BYTES, end - at)
            one, two = (disk.read(at, count).ljust(count, b"\0") for disk in (old, new))
            if one != two:
                for step in range(0, count, BLOCK_BYTES):
                    if one[step : step + BLOCK_BYTES] != two[step : step + BLOCK_BYTES]:
                        yield at + step
            at += count
            on_bytes(at)
        done = -(-at // BLOCK_BYTES) * BLOCK_BYTES
    if old.size_bytes != new.size_bytes:
        yield size - 1


def sha256_disk(disk: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """The hex digest that sha256sum(1) prints; holes are not read."""
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
    """The files that differing blocks of an ext4 file system belong to, in either disk, and what of them differs."""
    parts_of: dict[str, set[str]] = {}
    traced = {offset // BLOCK_BYTES for offset in offsets[:MAX_TRACED]}
    for volume, other in ((old, new), (new, old)):
        for entry, part in _traced(volume, other, traced):
            parts_of.setdefault(shown(entry.path) or "/", set()).add(part)
    lines = [f"{path} ({' and '.join(sorted(parts))})" for path, parts in sorted(parts_of.items())]
    return lines + ([f"... {len(offsets) - MAX_TRACED} more blocks"] if len(offsets) > MAX_TRACED else [])


def _traced(volume: Volume, other: Volume, blocks: set[int]) -> Iterator[tuple[Entry, str]]:
    """Files with an inode that differs from the other disk's, or with content in one of these blocks.

    What a damaged file system has besides is left out.
    """
    read_other = inodes.cached(other.read)
    try:
        system = volume.file_system
        for entry in chain([directories.top(system)], _own(system), directories.walk(system)):
            at = inodes.inode_place(system, entry.inode.number)
            size = system.inode_bytes
            if at // BLOCK_BYTES in blocks and system.read(at, size) != read_other(at, size):
                yield entry, "inode"
            if _holds(system, entry, blocks):
                yield entry, "content"
    except ImageError:
        return


def _own(system: FileSystem) -> Iterator[Entry]:
    """The inodes of the file system itself, of which the journal is one; they have no names."""
    for number in range(1, inodes.FIRST_INODE):
        if number != inodes.ROOT_INODE:
            yield Entry(b"<inode %d>" % number, inodes.inode_of(system, number))


def _holds(system: FileSystem, entry: Entry, blocks: set[int]) -> bool:
    """Whether one of these blocks (of BLOCK_BYTES) is of a file or directory; False where that cannot be told."""
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
