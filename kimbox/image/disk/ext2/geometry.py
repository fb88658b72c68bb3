"""Where the parts of a new ext2 file system are: groups, descriptors, bitmaps, tables of inodes, data. Pure.

Format: Linux, Documentation/filesystems/ext2 and ext4 (layout, group descriptors). The layout is that of mke2fs(8) with
the features `filetype`, `sparse_super` and `large_file`, without blocks that are reserved for a later growth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: Block sizes, in bytes. As mke2fs does, a file system of LARGE_FROM_BYTES or more gets the larger one.
SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES = 1024, 4096
LARGE_FROM_BYTES = 512 << 20

#: Size of an inode with times in nanoseconds, and of a group descriptor, in bytes.
INODE_BYTES, DESCRIPTOR_BYTES = 256, 32

#: One inode for this number of bytes of the file system, so that a guest can create many small files.
BYTES_PER_INODE = 8192

#: Inodes beyond those in use: a fixed number, and one for each SPARE_DIVISOR in use.
SPARE_INODES, SPARE_DIVISOR = 64, 8

#: Minimum number of data blocks of the last group. A smaller one is left out, as by mke2fs.
LAST_GROUP_BLOCKS = 50

#: Maximum size: a block number has 32 bits.
MAX_BYTES = (1 << 32) * LARGE_BLOCK_BYTES - (1 << 30)


def has_copy(group: int) -> bool:
    """Whether a group has a copy of the superblock (`sparse_super`): 0, 1 and the powers of 3, 5 and 7."""
    return group <= 1 or any(group in _powers(base, group + 1) for base in (3, 5, 7))


@dataclass(frozen=True, slots=True)
class Geometry:
    """The places in a file system. All numbers count blocks, except those with a unit in their name."""

    block_bytes: int
    blocks: int
    inodes_per_group: int

    @property
    def first_block(self) -> int:
        """The block of the superblock: blocks of 1024 bytes leave one for a boot sector."""
        return 1 if self.block_bytes == SMALL_BLOCK_BYTES else 0

    @property
    def blocks_per_group(self) -> int:
        return 8 * self.block_bytes

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def inodes(self) -> int:
        return self.groups * self.inodes_per_group

    @property
    def descriptor_blocks(self) -> int:
        return -(-self.groups * DESCRIPTOR_BYTES // self.block_bytes)

    @property
    def table_blocks(self) -> int:
        """The blocks of one group's table of inodes."""
        return self.inodes_per_group * INODE_BYTES // self.block_bytes

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.block_bytes

    def start(self, group: int) -> int:
        """The first block of a group."""
        return self.first_block + group * self.blocks_per_group

    def end(self, group: int) -> int:
        """The block after the last one of a group."""
        return min(self.start(group + 1), self.blocks)

    def bitmaps(self, group: int) -> int:
        """The block of a group's block bitmap. The bitmap of inodes and the table of inodes follow it."""
        return self.start(group) + (1 + self.descriptor_blocks if has_copy(group) else 0)

    def data(self, group: int) -> int:
        """The first data block of a group."""
        return self.bitmaps(group) + 2 + self.table_blocks

    @property
    def data_blocks(self) -> int:
        copies = sum(has_copy(group) for group in range(min(self.groups, 2))) + sum(
            1 for base in (3, 5, 7) for _ in _powers(base, self.groups)
        )
        overhead = self.groups * (2 + self.table_blocks) + copies * (1 + self.descriptor_blocks)
        return self.blocks - self.first_block - overhead


def _powers(base: int, limit: int) -> Iterator[int]:
    """Yields the powers of a number that are greater than 1 and less than the limit."""
    power = base
    while power < limit:
        yield power
        power *= base


def geometry(block_bytes: int, blocks: int, used_inodes: int) -> Geometry | None:
    """Returns the layout of at most `blocks` blocks; None if they are too few for the metadata."""
    unit = max(8, block_bytes // INODE_BYTES)  # a table fills its blocks, and the bitmap its bytes
    first_block = 1 if block_bytes == SMALL_BLOCK_BYTES else 0
    inodes = max(_least_inodes(used_inodes), blocks * block_bytes // BYTES_PER_INODE)
    groups = -(-(blocks - first_block) // (8 * block_bytes))
    while groups > 0:
        per_group = -(-inodes // groups // unit) * unit
        if per_group > 8 * block_bytes:
            return None
        place = Geometry(block_bytes, min(blocks, first_block + groups * 8 * block_bytes), per_group)
        if place.data(groups - 1) + LAST_GROUP_BLOCKS <= place.end(groups - 1):
            return place
        groups -= 1
    return None


def fitting(block_bytes: int, need_blocks: int, used_inodes: int) -> Geometry:
    """Returns the smallest layout with at least `need_blocks` data blocks."""
    blocks = need_blocks + _least_inodes(used_inodes) * INODE_BYTES // block_bytes
    while True:
        place = geometry(block_bytes, blocks, used_inodes)
        if place and place.data_blocks >= need_blocks:
            return place
        blocks += 1
        if place:
            # A block more gives one data block more, and may save the rounding of each group's table of inodes.
            rounding = 4 * (place.groups + 1)
            blocks = max(blocks, place.blocks + need_blocks - place.data_blocks - rounding)


def _least_inodes(used: int) -> int:
    return used + SPARE_INODES + used // SPARE_DIVISOR
