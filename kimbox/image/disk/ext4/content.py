"""Reads files and symbolic links of an ext4 file system that is not mounted. Pure: bytes come from a function.

An extent tree or a block map has the places of the blocks (Linux, Documentation/filesystems/ext4, ifork). A guest may
have written every byte. Therefore the caller limits sizes, and a budget of steps limits loops.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kimbox.image.disk.ext4.inodes import (
    EXTENT_MAGIC,
    EXTENTS_FLAG,
    MAX_EXTENT_BLOCKS,
    FileSystem,
    Inode,
    block_place,
)
from kimbox.image.disk.faults import damaged, unsupported

#: Maximum depth of an extent tree in Linux (EXT4_MAX_EXTENT_DEPTH).
MAX_DEPTH = 5

#: Maximum number of steps to read the blocks of one file: enough for a file of 64 GiB in pieces of 64 KiB.
MAX_STEPS = 1_000_000

#: Size of the chunks in which content is read, in bytes.
CHUNK_BYTES = 1 << 20

#: The target of a symbolic link that is shorter than this is in the inode.
SHORT_TARGET_BYTES = 60

#: (first block in the file, count, first block on disk)
Run = tuple[int, int, int]


@dataclass(slots=True)
class Budget:
    """The number of steps that remain. A step reads one entry, block or piece."""

    steps: int = MAX_STEPS

    def take(self, count: int = 1) -> None:
        """Uses steps. Raises ImageError if there are not enough."""
        self.steps -= count
        if self.steps < 0:
            raise unsupported("too-large", "the file system is too large for kimbox to read, or it is damaged")


def runs(system: FileSystem, inode: Inode, budget: Budget | None = None) -> Iterator[Run]:
    """Yields the blocks of a file or directory, ascending, up to its size.

    Holes and unwritten blocks are left out: they read as zeros. Raises ImageError if the extents are damaged.
    """
    budget = Budget() if budget is None else budget
    total = -(-inode.size_bytes // system.block_bytes)
    is_tree = inode.flags & EXTENTS_FLAG
    end = 0
    for first, count, start in _extents(system, inode, budget) if is_tree else _mapped(system, inode, total, budget):
        if first < end or count < 1:
            raise damaged("extents-overlap", "the extents of a file overlap")
        end = first + count
        if first >= total:  # allocated beyond the end of the file
            return
        if start:
            block_place(system, start, count)
            yield first, min(count, total - first), start


def _extents(system: FileSystem, inode: Inode, budget: Budget) -> Iterator[Run]:
    """Yields the leaves of an extent tree. The place of an extent that is allocated and not written is 0."""
    (depth,) = struct.unpack_from("<H", inode.block, 6)
    if depth > MAX_DEPTH:
        raise damaged("deep-extent-tree", f"an extent tree has more than {MAX_DEPTH} levels")
    pending = [(depth, 0)]  # the root is in the inode
    while pending:
        depth, place = pending.pop()
        node = system.read(place, system.block_bytes) if place else inode.block
        magic, count, _, own_depth = struct.unpack_from("<HHHH", node, 0)
        if magic != EXTENT_MAGIC or own_depth != depth or count > len(node) // 12 - 1:
            raise damaged("bad-extent-tree", "invalid node in an extent tree")
        budget.take(1 + count)
        children = []
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                children.append((depth - 1, block_place(system, high << 32 | low, 1)))
            else:
                first, length, high, low = struct.unpack_from("<IHHI", node, at)
                is_written = length <= MAX_EXTENT_BLOCKS
                yield (first, length, high << 32 | low) if is_written else (first, length - MAX_EXTENT_BLOCKS, 0)
        pending += reversed(children)


def _mapped(system: FileSystem, inode: Inode, total: int, budget: Budget) -> Iterator[Run]:
    """Yields the pieces of a file with a block map: 12 blocks, then one, two and three levels of blocks of numbers."""
    per_block = system.block_bytes // 4
    pending, first = [], 0
    for index, number in enumerate(struct.unpack("<15I", inode.block)):
        level = max(index - 11, 0)
        pending.append((number, level, first))
        first += per_block**level
    pending.reverse()
    run: Run | None = None
    while pending:
        number, level, first = pending.pop()
        if not number or first >= total:
            continue
        budget.take()
        place = block_place(system, number, 1)
        if level:
            numbers = struct.unpack(f"<{per_block}I", system.read(place, system.block_bytes))
            span = per_block ** (level - 1)
            pending += [(numbers[i], level - 1, first + i * span) for i in reversed(range(per_block)) if numbers[i]]
        elif run and (run[0] + run[1], run[2] + run[1]) == (first, number):
            run = run[0], run[1] + 1, run[2]
        else:
            if run:
                yield run
            run = first, 1, number
    if run:
        yield run


def chunks(system: FileSystem, inode: Inode, size_bytes: int) -> Iterator[bytes]:
    """Yields the first `size_bytes` of a regular file, or all of a shorter file, in chunks of CHUNK_BYTES.

    Holes are zeros.
    """
    size_bytes, unit = min(size_bytes, inode.size_bytes), system.block_bytes
    pieces = runs(system, inode)
    run = next(pieces, None)
    for at in range(0, size_bytes, CHUNK_BYTES):
        stop = min(at + CHUNK_BYTES, size_bytes)
        chunk = bytearray(stop - at)
        while run and run[0] * unit < stop:
            first, count, place = run
            begin, end = max(first * unit, at), min((first + count) * unit, stop)
            chunk[begin - at : end - at] = system.read(place * unit + begin - first * unit, end - begin)
            if (first + count) * unit > stop:
                break
            run = next(pieces, None)
        yield bytes(chunk)


def content(system: FileSystem, inode: Inode, limit_bytes: int) -> bytes | None:
    """Returns the content of a regular file, or None if it is larger than the limit. Then nothing is read."""
    if inode.size_bytes > limit_bytes:
        return None
    return b"".join(chunks(system, inode, inode.size_bytes))


def head(system: FileSystem, inode: Inode, count: int) -> bytes:
    """Returns the first `count` bytes of a regular file, or all of a shorter file."""
    return b"".join(chunks(system, inode, count))


def link_target(system: FileSystem, inode: Inode) -> bytes:
    """Returns the target of a symbolic link. Raises ImageError if it is longer than a block, the limit of ext4."""
    if inode.size_bytes < SHORT_TARGET_BYTES and not inode.flags & EXTENTS_FLAG:
        return inode.block[: inode.size_bytes]
    target = content(system, inode, system.block_bytes)
    if target is None:
        raise damaged("long-link", "a symbolic link is longer than a block")

    return target
