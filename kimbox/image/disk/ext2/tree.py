"""The files of a new ext2 file system: numbers of inodes, blocks of directories, blocks that content needs. Pure."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kimbox.image.disk.ext4.inodes import FIRST_INODE, ROOT_INODE

#: Number of block numbers in an inode. The last three are those of tables: one, two and three levels.
DIRECT_BLOCKS = 12

#: Maximum number of names of a file, and of subfolders of a folder (EXT2_LINK_MAX, less `.` and `..`).
MAX_LINKS = 31_998

#: Targets of symbolic links that are shorter than this are in the inode, in bytes.
SHORT_TARGET_BYTES = 60

#: The folder into which e2fsck(8) puts files without a name. mke2fs creates it as the first inode.
LOST_FOUND = b"lost+found"

#: Values of the type in a directory's entry.
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}

#: (first block in the file, count)
Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """A file, folder or symbolic link. `mode` includes the type. `runs` are the blocks of a file that are not zeros.

    `paths` are its names from the root, without a slash at the start: several for a file with hard links, the empty one
    for the root. `modified_ns` is in nanoseconds since 1970.
    """

    paths: tuple[bytes, ...]
    mode: int
    modified_ns: int
    size_bytes: int = 0
    runs: tuple[Run, ...] = ()
    target: bytes = b""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Tree:
    """Items by the number of their inode; for each folder, its entries (name, inode, type) and its parent's inode."""

    items: dict[int, Item]
    entries: dict[int, list[tuple[bytes, int, int]]]
    parents: dict[int, int]
    block_bytes: int

    @property
    def used_inodes(self) -> int:
        """The number of inodes in use, with those that ext2 reserves."""
        return max(self.items)

    def links(self, number: int) -> int:
        """The number of names of an inode; a folder has `.` and the `..` of each subfolder, too."""
        item = self.items[number]
        if not item.is_folder:
            return len(item.paths)
        return 2 + sum(kind == _TYPES[stat.S_IFDIR] for _, _, kind in self.entries[number])

    def blocks(self) -> int:
        """The number of data blocks that all items need."""
        return sum(self._blocks_of(number) for number in self.items)

    def _blocks_of(self, number: int) -> int:
        item = self.items[number]
        if item.is_folder:
            runs: tuple[Run, ...] = ((0, len(self.directory(number)) // self.block_bytes),)
        elif stat.S_ISLNK(item.mode):
            return int(len(item.target) >= SHORT_TARGET_BYTES)
        else:
            runs = item.runs
        return sum(count for _, count in runs) + table_blocks(runs, self.block_bytes // 4)

    def directory(self, number: int) -> bytes:
        """Returns the content of a folder: `.`, `..` and its entries, in blocks."""
        folder = _TYPES[stat.S_IFDIR]
        rows = [(b".", number, folder), (b"..", self.parents[number], folder), *self.entries[number]]
        return b"".join(_directory_blocks(rows, self.block_bytes))


def tree(items: Iterable[Item], block_bytes: int) -> Tree:
    """Numbers the items, in the order in which they are given, and adds `lost+found`. A folder is before its content.

    The first item is the root. An item of the name `lost+found` in the root is taken for that folder.
    """
    root, *others = items
    lost_found = Item((LOST_FOUND,), stat.S_IFDIR | 0o700, root.modified_ns)
    numbered = {ROOT_INODE: root, FIRST_INODE: lost_found}
    numbered |= enumerate((item for item in others if item.paths != (LOST_FOUND,)), FIRST_INODE + 1)
    folders = {item.paths[0]: number for number, item in numbered.items() if item.is_folder}
    parents = {number: folders[path.rpartition(b"/")[0]] for path, number in folders.items()}
    entries: dict[int, list[tuple[bytes, int, int]]] = {number: [] for number in folders.values()}
    for number, item in numbered.items():
        for path in item.paths if number != ROOT_INODE else ():
            parent, _, name = path.rpartition(b"/")
            entries[folders[parent]].append((name, number, _TYPES[stat.S_IFMT(item.mode)]))
    for rows in entries.values():
        rows.sort()
    return Tree(numbered, entries, parents, block_bytes)


def _directory_blocks(rows: list[tuple[bytes, int, int]], block_bytes: int) -> Iterator[bytes]:
    """Yields the blocks of a folder. The record of the last entry of a block fills the block."""
    block = bytearray()
    last = 0
    for name, number, kind in rows:
        size_bytes = 8 + -(-len(name) // 4) * 4
        if len(block) + size_bytes > block_bytes:
            struct.pack_into("<H", block, last + 4, block_bytes - last)
            yield bytes(block.ljust(block_bytes, b"\0"))
            block = bytearray()
        last = len(block)
        block += struct.pack("<IHBB", number, size_bytes, len(name), kind) + name.ljust(size_bytes - 8, b"\0")
    struct.pack_into("<H", block, last + 4, block_bytes - last)
    yield bytes(block.ljust(block_bytes, b"\0"))


def table_blocks(runs: Iterable[Run], per_table: int) -> int:
    """Returns the number of blocks with block numbers that a file needs. `per_table`: the numbers in one of them."""
    leaves = middles = top = 0
    last_leaf = last_middle = -1
    for first, count in runs:
        start, end = max(first, DIRECT_BLOCKS) - DIRECT_BLOCKS, first + count - DIRECT_BLOCKS
        if end <= start:
            continue
        low, high = max(start // per_table, last_leaf + 1), (end - 1) // per_table
        leaves += max(0, high - low + 1)
        last_leaf = max(high, last_leaf)
        if high >= 1:  # the first leaf is in the inode, every other one in a table of the second level
            low, high = max((max(low, 1) - 1) // per_table, last_middle + 1), (high - 1) // per_table
            middles += max(0, high - low + 1)
            last_middle = max(high, last_middle)
            top = int(last_middle >= 1)
    return leaves + middles + top
