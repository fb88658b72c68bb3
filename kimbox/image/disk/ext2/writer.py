"""Writes a new ext2 file system into an empty file. Equal trees and seeds result in equal bytes.

Format: Linux, Documentation/filesystems/ext2 and ext4 (super, group descriptors, inodes, block map, directory). The
owner of everything is root. Only the metadata in use and the content are written; the remainder of the file is a hole.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kimbox.image.disk.derived import derived_uuid
from kimbox.image.disk.ext2.geometry import DESCRIPTOR_BYTES, INODE_BYTES, Geometry, has_copy
from kimbox.image.disk.ext2.tree import DIRECT_BLOCKS, SHORT_TARGET_BYTES, Item, Run, Tree
from kimbox.image.disk.ext4.inodes import FIRST_INODE, ROOT_INODE
from kimbox.image.disk.ext4.superblock import MAGIC, SUPERBLOCK_BYTES

#: `s_feature_compat`: the kernel may index large folders. `s_feature_incompat`: entries have the type of the file.
#: `s_feature_ro_compat`: few copies of the superblock; files of 2 GiB and more.
DIR_INDEX, FILETYPE, SPARSE_SUPER, LARGE_FILE = 0x20, 0x2, 0x1, 0x2

#: Hash of indexed folders (half MD4), and the flag that it reads names as signed characters.
HALF_MD4, SIGNED_HASH = 1, 1

#: Size of the fields of an inode behind the first 128 bytes.
EXTRA_BYTES = 32

#: Size of one copy of content, in bytes.
COPY_BYTES = 4 << 20

#: Opens the content of an item: a function that reads at an offset a number of bytes.
Read = Callable[[int, int], bytes]
Open = Callable[[Item], AbstractContextManager[Read]]

#: (first block in the file, count, first block on disk)
Piece = tuple[int, int, int]


class _Blocks:
    """Assigns the data blocks, in ascending order. Blocks below `next_block` are in use."""

    def __init__(self, place: Geometry) -> None:
        self._place = place
        self._group = 0
        self.next_block = place.data(0)

    def take(self, count: int) -> Iterator[tuple[int, int]]:
        """Yields places (first block, count) for `count` blocks."""
        while count:
            free = self._place.end(self._group) - self.next_block
            if not free:
                self._group += 1
                self.next_block = self._place.data(self._group)
                continue
            start, length = self.next_block, min(free, count)
            self.next_block += length
            count -= length
            yield start, length

    def used(self, group: int) -> int:
        """The block after the last one in use in a group."""
        if group > self._group:
            return self._place.data(group)
        return self.next_block if group == self._group else self._place.end(group)


@dataclass(slots=True)
class _Writer:
    """The state of one run: the open file, the layout, the tree and the blocks that are assigned."""

    handle: int
    place: Geometry
    tree: Tree
    blocks: _Blocks

    def put(self, block: int, data: bytes) -> None:
        """Writes at the start of a block."""
        at, view = block * self.place.block_bytes, memoryview(data)
        while view:
            done = os.pwrite(self.handle, view, at)
            at, view = at + done, view[done:]

    def stored(self, data: bytes) -> tuple[list[int], int]:
        """Writes data, and returns its block map and its number of blocks."""
        unit = self.place.block_bytes
        return self.copied(((0, -(-len(data) // unit)),), lambda at, size: data[at : at + size])

    def copied(self, runs: tuple[Run, ...], read: Read) -> tuple[list[int], int]:
        """Writes the runs of a file, and returns its block map and its number of blocks, with those of tables."""
        unit, pieces = self.place.block_bytes, []
        for first, count in runs:
            for start, length in self.blocks.take(count):
                pieces.append((first, length, start))
                step = COPY_BYTES // unit
                for done in range(0, length, step):
                    size_bytes = min(step, length - done) * unit
                    self.put(start + done, read((first + done) * unit, size_bytes))
                first += length
        numbers, tables = block_map(pieces, unit // 4, lambda: next(self.blocks.take(1))[0])
        for block, data in tables:
            self.put(block, data)
        return numbers, sum(count for _, count in runs) + len(tables)


def write(handle: int, place: Geometry, tree: Tree, seed: str, label: str, open_content: Open) -> None:
    """Writes the file system of a tree into an empty file of the size of the layout, which has room for the tree.

    Every UUID derives from `seed`. `label` has at most 16 bytes. Errors of `open_content` and OSError pass.
    """
    writer = _Writer(handle, place, tree, _Blocks(place))
    inodes: dict[int, bytes] = {}
    for number, item in tree.items.items():
        if item.is_folder:
            content = tree.directory(number)
            size_bytes = len(content)
            numbers, count = writer.stored(content)
        elif stat.S_ISLNK(item.mode):
            numbers, count, size_bytes = [], 0, len(item.target)
            if size_bytes >= SHORT_TARGET_BYTES:
                numbers, count = writer.stored(item.target)
        else:
            with open_content(item) as read:
                numbers, count = writer.copied(item.runs, read)
            size_bytes = item.size_bytes
        sectors = count * place.block_bytes // 512
        inodes[number] = _inode(item, size_bytes, sectors, numbers, tree.links(number))
    _write_tables(writer, inodes)
    _write_groups(writer, seed, label)


def block_map(
    pieces: list[Piece], per_table: int, take: Callable[[], int]
) -> tuple[list[int], list[tuple[int, bytes]]]:
    """Returns the 15 numbers of an inode, and the tables: their blocks, which `take` assigns, and their content."""
    numbers = [0] * 15
    leaves: dict[int, array[int]] = {}
    for first, count, start in pieces:
        for index in range(first, min(first + count, DIRECT_BLOCKS)):
            numbers[index] = start + index - first
        at, end = max(first, DIRECT_BLOCKS), first + count
        while at < end:
            leaf, offset = divmod(at - DIRECT_BLOCKS, per_table)
            length = min(end - at, per_table - offset)
            table = leaves.setdefault(leaf, _empty(per_table))
            table[offset : offset + length] = array("I", range(start + at - first, start + at - first + length))
            at += length
    tables: list[tuple[int, bytes]] = []

    def stored(table: array[int]) -> int:
        block = take()
        tables.append((block, _little_endian(table)))
        return block

    middles: dict[int, array[int]] = {}
    for leaf, table in leaves.items():
        if leaf == 0:
            numbers[DIRECT_BLOCKS] = stored(table)
        else:
            middle, offset = divmod(leaf - 1, per_table)
            middles.setdefault(middle, _empty(per_table))[offset] = stored(table)
    top = _empty(per_table)
    for middle, table in middles.items():
        if middle == 0:
            numbers[DIRECT_BLOCKS + 1] = stored(table)
        else:
            top[middle - 1] = stored(table)
    if any(top):
        numbers[DIRECT_BLOCKS + 2] = stored(top)
    return numbers, tables


def _empty(count: int) -> array[int]:
    return array("I", bytes(4 * count))


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array("I", numbers)
        numbers.byteswap()
    return numbers.tobytes()


def _inode(item: Item, size_bytes: int, sectors: int, numbers: list[int], links: int) -> bytes:
    """Returns an inode. All its times are that of the last change of the content."""
    seconds, nanoseconds = divmod(item.modified_ns, 1_000_000_000)
    seconds = min(max(seconds, -(1 << 31)), (1 << 34) - (1 << 31) - 1)
    low = (seconds + (1 << 31)) % (1 << 32) - (1 << 31)
    extra = nanoseconds << 2 | (seconds - low) >> 32
    raw = bytearray(INODE_BYTES)
    struct.pack_into("<HHIiiiiHHI", raw, 0, item.mode, 0, size_bytes & 0xFFFFFFFF, low, low, low, 0, 0, links, sectors)
    if stat.S_ISLNK(item.mode) and not sectors:
        raw[0x28 : 0x28 + len(item.target)] = item.target
    else:
        struct.pack_into("<15I", raw, 0x28, *numbers)
    if stat.S_ISREG(item.mode):
        struct.pack_into("<I", raw, 0x6C, size_bytes >> 32)
    struct.pack_into("<HHIIIiI", raw, 0x80, EXTRA_BYTES, 0, extra, extra, extra, low, extra)
    return bytes(raw)


def _write_tables(writer: _Writer, inodes: dict[int, bytes]) -> None:
    """Writes the inodes in use into the tables of their groups."""
    place = writer.place
    table = bytearray(INODE_BYTES * writer.tree.used_inodes)
    for number, raw in inodes.items():
        table[(number - 1) * INODE_BYTES : number * INODE_BYTES] = raw
    step = place.inodes_per_group * INODE_BYTES
    for group in range(-(-len(table) // step)):
        writer.put(place.bitmaps(group) + 2, bytes(table[group * step : (group + 1) * step]))


def _write_groups(writer: _Writer, seed: str, label: str) -> None:
    """Writes bitmaps, descriptors and superblocks."""
    place, tree = writer.place, writer.tree
    folders = [0] * place.groups
    for number, item in tree.items.items():
        folders[(number - 1) // place.inodes_per_group] += item.is_folder
    descriptors, free_blocks, free_inodes = bytearray(), 0, 0
    for group in range(place.groups):
        used = writer.blocks.used(group)
        used_inodes = min(max(tree.used_inodes - group * place.inodes_per_group, 0), place.inodes_per_group)
        bits, size = used - place.start(group), place.end(group) - place.start(group)
        writer.put(place.bitmaps(group), _bitmap(bits, size, place.block_bytes))
        writer.put(place.bitmaps(group) + 1, _bitmap(used_inodes, place.inodes_per_group, place.block_bytes))
        free = place.end(group) - used, place.inodes_per_group - used_inodes
        free_blocks, free_inodes = free_blocks + free[0], free_inodes + free[1]
        first = place.bitmaps(group)
        descriptors += struct.pack("<IIIHHH", first, first + 1, first + 2, *free, folders[group]).ljust(
            DESCRIPTOR_BYTES, b"\0"
        )
    for group in filter(has_copy, range(place.groups)):
        block = _superblock(place, free_blocks, free_inodes, group, seed, label, tree.items[ROOT_INODE].modified_ns)
        # With blocks of 4096 bytes, the first superblock is behind the space for a boot sector, in the same block.
        is_inside = group == 0 and place.first_block == 0
        writer.put(place.start(group), bytes(SUPERBLOCK_BYTES if is_inside else 0) + block)
        writer.put(place.start(group) + 1, bytes(descriptors))


def _bitmap(used: int, size: int, block_bytes: int) -> bytes:
    """Returns a bitmap with the first `used` of `size` bits set, and all bits beyond `size`."""
    bits = (1 << used) - 1 | ((1 << 8 * block_bytes) - 1) >> size << size
    return bits.to_bytes(block_bytes, "little")


def _superblock(
    place: Geometry, free_blocks: int, free_inodes: int, group: int, seed: str, label: str, modified_ns: int
) -> bytes:
    """Returns the superblock, as it is in a group."""
    raw = bytearray(SUPERBLOCK_BYTES)
    log_block = place.block_bytes.bit_length() - 11
    sizes = place.blocks_per_group, place.blocks_per_group, place.inodes_per_group
    written_s = min(max(modified_ns // 1_000_000_000, 0), 0xFFFFFFFF)
    fields: list[tuple[str, int, tuple[int, ...]]] = [
        ("<5I", 0x00, (place.inodes, place.blocks, 0, free_blocks, free_inodes)),
        ("<6I", 0x14, (place.first_block, log_block, log_block, *sizes)),
        ("<II", 0x2C, (0, written_s)),  # not mounted yet, and the time of the last write
        ("<HHHHH", 0x34, (0, 0xFFFF, MAGIC, 1, 1)),  # no check after a number of mounts; clean; continue on errors
        ("<I", 0x40, (written_s,)),  # the time of the last check
        ("<I", 0x4C, (1,)),  # revision with inodes of any size
        ("<IHH", 0x54, (FIRST_INODE, INODE_BYTES, group)),
        ("<III", 0x5C, (DIR_INDEX, FILETYPE, SPARSE_SUPER | LARGE_FILE)),
        ("<B", 0xFC, (HALF_MD4,)),
        ("<I", 0x108, (written_s,)),  # the time of creation
        ("<HHI", 0x15C, (EXTRA_BYTES, EXTRA_BYTES, SIGNED_HASH)),
    ]
    for form, offset, values in fields:
        struct.pack_into(form, raw, offset, *values)
    raw[0x68:0x78] = derived_uuid(seed).bytes
    raw[0x78:0x88] = label.encode().ljust(16, b"\0")
    raw[0xEC:0xFC] = derived_uuid(f"{seed}/hash").bytes
    return bytes(raw)
