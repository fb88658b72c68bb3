"""Where two disks of one layout differ, told in the terms of that layout: partition, LV, path of a file.

The file systems are read with debugfs(8) and dumpe2fs(8), which mount nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from kimbox import run
from kimbox.files import data_ranges
from kimbox.spec.layout import Extent, Layout

#: Disks are compared in blocks of the file systems' own size.
BLOCK_BYTES = 4096

#: Blocks that are read at a time.
BATCH_BYTES = 1 << 20

#: No more blocks of a file system are traced to files; the rest is counted.
MAX_TRACED = 2000

#: Size of an inode, as kimbox makes file systems.
INODE_BYTES = 256


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
    found: dict[str, list[int]] = {place.name: [] for place in places}
    for offset in differing(old, new, on_bytes=on_bytes):
        place = next((p for p in places if p.offset_bytes <= offset < p.end_bytes), places[-1])
        found[place.name].append(offset - place.offset_bytes)
    told = []
    for place in places:
        if offsets := found[place.name]:
            is_ext4 = place.name in ("/boot", f"LV {layout.root.name}", f"LV {layout.persistent.name}")
            files = _files(old, new, place, offsets) if is_ext4 else ()
            told.append(Difference(place.name, len(offsets), tuple(files)))
    return told


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


def differing(old: Path, new: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> Iterator[int]:
    """Offsets of the blocks in which two files differ, ascending; only what is no hole in one of them is read."""
    with old.open("rb") as a, new.open("rb") as b:
        size = max(os.fstat(a.fileno()).st_size, os.fstat(b.fileno()).st_size)
        done = 0
        for start, end in _merged([*data_ranges(a.fileno()), *data_ranges(b.fileno())]):
            at = max(start // BLOCK_BYTES * BLOCK_BYTES, done)
            while at < end:
                count = min(BATCH_BYTES, end - at)
                one, two = (os.pread(f.fileno(), count, at).ljust(count, b"\0") for f in (a, b))
                if one != two:
                    for step in range(0, count, BLOCK_BYTES):
                        if one[step : step + BLOCK_BYTES] != two[step : step + BLOCK_BYTES]:
                            yield at + step
                at += count
                on_bytes(at)
            done = -(-at // BLOCK_BYTES) * BLOCK_BYTES
        if os.fstat(a.fileno()).st_size != os.fstat(b.fileno()).st_size:
            yield size - 1


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges in order, those that touch as one."""
    last: tuple[int, int] | None = None
    for start, end in sorted(ranges):
        if last and start <= last[1]:
            last = last[0], max(last[1], end)
            continue
        if last:
            yield last
        last = start, end
    if last:
        yield last


def sha256_disk(disk: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """The hex digest that sha256sum(1) would tell; holes are not read."""
    zeros, digest, done = bytes(BATCH_BYTES), hashlib.sha256(), 0

    def skip(count: int) -> None:
        for _ in range(count // BATCH_BYTES):
            digest.update(zeros)
        digest.update(zeros[: count % BATCH_BYTES])

    with disk.open("rb") as file:
        for start, end in data_ranges(file.fileno()):
            skip(start - done)
            for at in range(start, end, BATCH_BYTES):
                digest.update(os.pread(file.fileno(), min(BATCH_BYTES, end - at), at))
                on_bytes(at)
            done = end
        skip(os.fstat(file.fileno()).st_size - done)
    return digest.hexdigest()


def _files(old: Path, new: Path, place: Extent, offsets: list[int]) -> list[str]:
    """The files that differing blocks of an ext4 file system belong to, in either disk, and what of them differs."""
    told: dict[str, set[str]] = {}
    traced = offsets[:MAX_TRACED]
    for disk in (old, new):
        device = f"{disk}?offset={place.offset_bytes}"
        inodes = _inodes_of_blocks(device, [offset // BLOCK_BYTES for offset in traced])
        inodes |= dict.fromkeys(_inodes_in_tables(device, old, new, place, traced), "inode")
        for number, path in _paths(device, inodes).items():
            told.setdefault(path, set()).add(inodes[number])
    lines = [f"{path} ({' and '.join(sorted(what))})" for path, what in sorted(told.items())]
    return lines + ([f"... {len(offsets) - len(traced)} more blocks"] if len(offsets) > len(traced) else [])


def _debugfs(device: str, request: str) -> str:
    return run.run(["debugfs", "-R", request, device], check=False).stdout


def _inodes_of_blocks(device: str, blocks: list[int]) -> dict[int, str]:
    """Inodes that hold these blocks."""
    found = {}
    for line in _debugfs(device, "icheck " + " ".join(map(str, blocks))).splitlines():
        if match := re.fullmatch(r"\d+\t(\d+)", line):
            found[int(match[1])] = "content"
    return found


def _inodes_in_tables(device: str, old: Path, new: Path, place: Extent, offsets: list[int]) -> set[int]:
    """Inodes that differ themselves: times, owners, sizes, where their blocks are."""
    told = run.run(["dumpe2fs", device], check=False).stdout
    match = re.search(r"^Inodes per group: +(\d+)", told, re.MULTILINE)
    per_group = int(match[1]) if match else 0
    tables = [(int(a), int(b)) for a, b in re.findall(r"^  Inode table at (\d+)-(\d+)", told, re.MULTILINE)]
    found = set()
    with old.open("rb") as a, new.open("rb") as b:
        for offset in offsets:
            block = offset // BLOCK_BYTES
            for group, (first, last) in enumerate(tables):
                if first <= block <= last:
                    number = group * per_group + (block - first) * (BLOCK_BYTES // INODE_BYTES) + 1
                    one, two = (os.pread(f.fileno(), BLOCK_BYTES, place.offset_bytes + offset) for f in (a, b))
                    for index in range(BLOCK_BYTES // INODE_BYTES):
                        piece = slice(index * INODE_BYTES, (index + 1) * INODE_BYTES)
                        if one[piece] != two[piece]:
                            found.add(number + index)
    return found


def _paths(device: str, inodes: Iterable[int]) -> dict[int, str]:
    """A path for each inode; its number where no folder names it."""
    numbers = sorted(inodes)
    if not numbers:
        return {}
    found = {number: f"<inode {number}>" for number in numbers}
    for line in _debugfs(device, "ncheck " + " ".join(map(str, numbers))).splitlines():
        if match := re.fullmatch(r"(\d+)\t(.*)", line):
            found[int(match[1])] = match[2].replace("//", "/", 1)
    return found
