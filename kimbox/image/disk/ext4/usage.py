"""Finds the bytes of an ext4 file system that are in use, by its block bitmaps. Pure: bytes come from a function.

Format: Linux, Documentation/filesystems/ext4 (super, group_descr, bitmaps, journal). A copy drops all other bytes.
Therefore everything is verified: checksums if there are any, counts of free blocks against the bits, and every place
against the size. A file system that is inconsistent or marked as damaged is rejected.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import ranges
from kimbox.image.disk.ext4 import inodes as ext4
from kimbox.image.disk.ext4 import superblock
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ext4.superblock import (
    BIGALLOC,
    ERROR_STATE,
    GROUP_CHECKSUMS,
    HAS_JOURNAL,
    META_BG,
    METADATA_CHECKSUMS,
    RECOVER,
    SUPERBLOCK_BYTES,
    WIDE,
    Superblock,
    crc32c,
)
from kimbox.image.disk.faults import UnknownUsage, damaged, exact
from kimbox.image.disk.ranges import Ranges

#: Features of `s_feature_incompat` that change the place of data and that this module does not know: compression, a
#: journal device, dirdata. No default of mke2fs for a box has them. The other features do not affect blocks in use.
FOREIGN = 0x1 | 0x8 | 0x1000

#: `bg_flags`: the bitmap is not written yet.
BLOCK_UNINIT = 0x2

#: Inode number of the journal.
JOURNAL_INODE = 8

#: Maximum size of a file system, in bytes. A larger one needs too much memory.
MAX_BYTES = 16 << 40

#: Superblock of jbd2: magic number and types. The first block of the log is at 0x1C: 0 if there is nothing to replay.
JBD2_MAGIC = 0xC03B3998
JBD2_SUPERBLOCKS = (3, 4)

_RUN = re.compile("1+")


@attrs.frozen
class _Blocks:
    """The numbers of a superblock that describe blocks and groups, checked."""

    block_bytes: int
    #: Number of blocks for each bit of a bitmap.
    ratio: int
    blocks: int
    first_block: int
    per_group: int
    descriptor_bytes: int
    reserved_blocks: int
    compat: int
    ro_compat: int
    seed: int

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.per_group)


def is_ext4(read: Read) -> bool:
    """Whether there is the magic number of an ext2, ext3 or ext4 file system."""
    return superblock.has_magic(read(SUPERBLOCK_BYTES, 0x40))


def used(read: Read, size_bytes: int) -> Ranges:
    """Returns the bytes in use of a file system in a volume of `size_bytes`. Bytes after the file system are in use.

    If the journal has nothing to replay, only its superblock is in use. Raises UnknownUsage if kimbox does not know the
    features of the file system or the journal must be replayed, ImageError if the file system is damaged.
    """
    read = exact(read)
    system = _open(read, size_bytes)
    block, table = system.block_bytes, (system.first_block + 1) * system.block_bytes
    raw = read(table, system.groups * system.descriptor_bytes)
    table_blocks = -(-len(raw) // block) + system.reserved_blocks
    used_blocks: list[tuple[int, int]] = [(0, system.first_block + 1 + table_blocks)]
    for group in range(system.groups):
        descriptor = raw[group * system.descriptor_bytes :][: system.descriptor_bytes]
        used_blocks += _of_group(read, system, group, descriptor, table_blocks)
    used_bytes = ranges.merged((start * block, min(end, system.blocks) * block) for start, end in used_blocks)
    if system.compat & HAS_JOURNAL:
        used_bytes = ranges.without(used_bytes, _idle_journal(read, system))
    return ranges.merged([*used_bytes, (system.blocks * block, size_bytes)])


def _open(read: Read, size_bytes: int) -> _Blocks:
    """Returns the numbers of the superblock. Raises UnknownUsage or ImageError if it is not accepted."""
    raw = Superblock.parse(read(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES))
    if raw.incompat & RECOVER:
        raise UnknownUsage(
            "not-unmounted", "the file system was not unmounted, and its journal may have newer data than its bitmaps"
        )
    if raw.incompat & (FOREIGN | META_BG):
        raise UnknownUsage("unknown-features", "the file system has features that kimbox does not know")
    if raw.state & ERROR_STATE:
        raise damaged("marked", "it is marked as damaged")
    has_clusters = raw.ro_compat & BIGALLOC and raw.log_block <= raw.log_cluster <= 20
    system = _Blocks(
        block_bytes=1024 << min(raw.log_block, 6),
        ratio=1 << (raw.log_cluster - raw.log_block) if has_clusters else 1,
        blocks=raw.blocks,
        first_block=raw.first_block,
        per_group=raw.blocks_per_group,
        descriptor_bytes=(raw.descriptor_bytes or 32) if raw.incompat & WIDE else 32,
        reserved_blocks=raw.reserved_descriptor_blocks,
        compat=raw.compat,
        ro_compat=raw.ro_compat,
        seed=raw.checksum_seed,
    )
    if not raw.is_intact:
        raise damaged("superblock-checksum", "wrong checksum of the superblock")
    is_valid = (
        raw.log_block <= 6
        and system.first_block == (1 if raw.log_block == 0 else 0)
        and 0 < system.per_group <= system.block_bytes * 8 * system.ratio
        and system.per_group % (8 * system.ratio) == 0
        and system.descriptor_bytes in (32, 64)
        and system.first_block < system.blocks
        and system.blocks * system.block_bytes <= min(size_bytes, MAX_BYTES)
        and raw.inodes > 0
    )
    if not is_valid:
        raise damaged("bad-superblock", "invalid number in the superblock")
    return system


def _of_group(
    read: Read, system: _Blocks, group: int, descriptor: bytes, table_blocks: int
) -> Iterator[tuple[int, int]]:
    """Yields the blocks in use of one group, as (first, end)."""
    begin = system.first_block + group * system.per_group
    count = min(system.per_group, system.blocks - begin)
    low, flags, free, high = (
        struct.unpack_from("<I", descriptor, 0)[0],
        struct.unpack_from("<H", descriptor, 0x12)[0],
        struct.unpack_from("<H", descriptor, 0xC)[0],
        0,
    )
    checksum = struct.unpack_from("<H", descriptor, 0x18)[0]
    if system.ro_compat & METADATA_CHECKSUMS and not _is_intact(descriptor, system, group):
        raise damaged("descriptor-checksum", f"wrong checksum of the descriptor of group {group}", group=group)
    if system.descriptor_bytes >= 64:
        (high,) = struct.unpack_from("<I", descriptor, 0x20)
        free |= struct.unpack_from("<H", descriptor, 0x2C)[0] << 16
        checksum |= struct.unpack_from("<H", descriptor, 0x38)[0] << 16
    if flags & BLOCK_UNINIT and system.ro_compat & (GROUP_CHECKSUMS | METADATA_CHECKSUMS):
        # The group's metadata is in the bitmaps of other groups, or at the place of the superblock and its copies.
        yield begin, begin + 1 + table_blocks
        yield from _own_tables(descriptor, system, begin, begin + count)
        return
    place = low | high << 32
    if not system.first_block < place < system.blocks:
        raise damaged("bitmap-outside", f"the bitmap of group {group} is outside the file system", group=group)
    bitmap = read(place * system.block_bytes, system.block_bytes)
    if system.ro_compat & METADATA_CHECKSUMS:
        computed = crc32c(system.seed, bitmap[: system.per_group // system.ratio // 8])
        if computed & (0xFFFFFFFF if system.descriptor_bytes >= 64 else 0xFFFF) != checksum:
            raise damaged("bitmap-checksum", f"wrong checksum of the bitmap of group {group}", group=group)
    bits = -(-count // system.ratio)
    text = format(int.from_bytes(bitmap, "little"), f"0{len(bitmap) * 8}b")[::-1][:bits]
    in_bitmap = text.count("0")
    if in_bitmap != free:
        raise damaged(
            "free-count",
            f"group {group} has {in_bitmap} free blocks in its bitmap and {free} in its descriptor",
            group=group,
        )
    for run in _RUN.finditer(text):
        yield begin + run.start() * system.ratio, begin + run.end() * system.ratio


def _is_intact(descriptor: bytes, system: _Blocks, group: int) -> bool:
    """Whether the checksum in a group's descriptor, at 0x1E, is correct."""
    seed = crc32c(system.seed, group.to_bytes(4, "little"))
    computed = crc32c(seed, descriptor[:0x1E] + bytes(2) + descriptor[0x20:])
    return computed & 0xFFFF == int.from_bytes(descriptor[0x1E:0x20], "little")


def _own_tables(descriptor: bytes, system: _Blocks, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields all blocks of a group without a bitmap if its bitmaps or its inode table are in the group itself.

    They may fill the group.
    """
    for low, high in ((0, 0x20), (4, 0x24), (8, 0x28)):
        place = struct.unpack_from("<I", descriptor, low)[0]
        if system.descriptor_bytes >= 64:
            place |= struct.unpack_from("<I", descriptor, high)[0] << 32
        if begin <= place < end:
            yield begin, end
            return


def _idle_journal(read: Read, system: _Blocks) -> Ranges:
    """Returns the bytes of a journal that has nothing to replay, without its superblock.

    Otherwise, or if the journal has more than four extents, the result is empty.
    """
    try:
        opened = ext4.open_at(read)
        extents = ext4.direct_extents(opened, ext4.inode_of(opened, JOURNAL_INODE))
    except ImageError:
        return []
    if not extents or extents[0][0] != 0 or sum(count for _, count, _ in extents) > system.blocks:
        return []
    block = system.block_bytes
    head = read(extents[0][2] * block, 0x20)
    magic, kind, _, size = struct.unpack_from(">IIII", head, 0)
    if magic != JBD2_MAGIC or kind not in JBD2_SUPERBLOCKS or size != block or head[0x1C:] != bytes(4):
        return []
    return ranges.without(
        ranges.merged((start * block, (start + count) * block) for _, count, start in extents),
        [(extents[0][2] * block, (extents[0][2] + 1) * block)],
    )
