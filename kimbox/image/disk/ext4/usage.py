"""Which bytes of an ext4 file system hold anything, by its own block bitmaps. Pure: bytes come from a function.

Format: Linux, Documentation/filesystems/ext4 (super, group_descr, bitmaps, journal). Whoever drops the rest trusts
these numbers, so that nothing is taken on faith: checksums where there are any, counts of free blocks against the bits,
every place against the size. A file system that is not sound, or says of itself that it is not, is refused.
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
from kimbox.image.disk.ranges import Ranges

#: Features that change where data is, and that neither this module nor mke2fs's defaults for a box know: compression,
#: a journal device, dirdata. The others of `s_feature_incompat` do not concern blocks in use.
FOREIGN = 0x1 | 0x8 | 0x1000

#: `bg_flags`: the bitmap was never written.
BLOCK_UNINIT = 0x2

#: The journal's inode, where mke2fs makes it.
JOURNAL_INODE = 8

#: A larger file system would take too much memory here.
MAX_BYTES = 16 << 40

#: jbd2's superblock: magic, kinds, and at 0x1C the block in which the log begins: 0 if there is none to replay.
JBD2_MAGIC = 0xC03B3998
JBD2_SUPERBLOCKS = (3, 4)

_RUN = re.compile("1+")


class Opaque(ImageError):
    """What is there may be sound, and what of it is in use cannot be told: all of it has to count as used."""


@attrs.frozen
class _Super:
    """What the superblock tells of blocks and groups."""

    block_bytes: int
    #: Blocks that a bit of a bitmap stands for.
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
    """Whether the bytes begin as an ext2, ext3 or ext4 file system does."""
    return superblock.has_magic(read(SUPERBLOCK_BYTES, 0x40))


def used(read: Read, size_bytes: int) -> Ranges:
    """The bytes of a file system in a volume of `size_bytes` that hold anything; what lies behind it counts as used.

    The content of a journal that has nothing to replay is not used, but for its superblock. Raises Opaque where
    that cannot be told, ImageError if the file system is damaged.
    """
    system = _open(read, size_bytes)
    block, table = system.block_bytes, (system.first_block + 1) * system.block_bytes
    raw = read(table, system.groups * system.descriptor_bytes)
    table_blocks = -(-len(raw) // block) + system.reserved_blocks
    found: list[tuple[int, int]] = [(0, system.first_block + 1 + table_blocks)]
    for group in range(system.groups):
        descriptor = raw[group * system.descriptor_bytes :][: system.descriptor_bytes]
        found += _of_group(read, system, group, descriptor, table_blocks)
    taken = ranges.merged((start * block, min(end, system.blocks) * block) for start, end in found)
    if system.compat & HAS_JOURNAL:
        taken = ranges.without(taken, _idle_journal(read, system))
    return ranges.merged([*taken, (system.blocks * block, size_bytes)])


def _open(read: Read, size_bytes: int) -> _Super:
    found = Superblock.parse(read(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES))
    if found.incompat & RECOVER:
        raise Opaque("its file system was not unmounted, and its journal may know better than its bitmaps")
    if found.incompat & (FOREIGN | META_BG):
        raise Opaque("its file system has features that kimbox does not know")
    if found.state & ERROR_STATE:
        raise ImageError("its file system is marked as damaged")
    has_clusters = found.ro_compat & BIGALLOC and found.log_block <= found.log_cluster <= 20
    system = _Super(
        block_bytes=1024 << min(found.log_block, 6),
        ratio=1 << (found.log_cluster - found.log_block) if has_clusters else 1,
        blocks=found.blocks,
        first_block=found.first_block,
        per_group=found.blocks_per_group,
        descriptor_bytes=(found.descriptor_bytes or 32) if found.incompat & WIDE else 32,
        reserved_blocks=found.reserved_descriptor_blocks,
        compat=found.compat,
        ro_compat=found.ro_compat,
        seed=found.checksum_seed,
    )
    if not found.is_whole:
        raise ImageError("its file system is damaged: the superblock's checksum is wrong")
    sound = (
        found.log_block <= 6
        and system.first_block == (1 if found.log_block == 0 else 0)
        and 0 < system.per_group <= system.block_bytes * 8 * system.ratio
        and system.per_group % (8 * system.ratio) == 0
        and system.descriptor_bytes in (32, 64)
        and system.first_block < system.blocks
        and system.blocks * system.block_bytes <= min(size_bytes, MAX_BYTES)
        and found.inodes > 0
    )
    if not sound:
        raise ImageError("its file system is damaged: a superblock that cannot be")
    return system


def _of_group(
    read: Read, system: _Super, group: int, descriptor: bytes, table_blocks: int
) -> Iterator[tuple[int, int]]:
    """Blocks in use of one group, as (first, end)."""
    begin = system.first_block + group * system.per_group
    count = min(system.per_group, system.blocks - begin)
    low, flags, free, high = (
        struct.unpack_from("<I", descriptor, 0)[0],
        struct.unpack_from("<H", descriptor, 0x12)[0],
        struct.unpack_from("<H", descriptor, 0xC)[0],
        0,
    )
    checksum = struct.unpack_from("<H", descriptor, 0x18)[0]
    if system.ro_compat & METADATA_CHECKSUMS and not _is_whole(descriptor, system, group):
        raise ImageError(f"its file system is damaged: the checksum of the description of group {group} is wrong")
    if system.descriptor_bytes >= 64:
        (high,) = struct.unpack_from("<I", descriptor, 0x20)
        free |= struct.unpack_from("<H", descriptor, 0x2C)[0] << 16
        checksum |= struct.unpack_from("<H", descriptor, 0x38)[0] << 16
    if flags & BLOCK_UNINIT and system.ro_compat & (GROUP_CHECKSUMS | METADATA_CHECKSUMS):
        # Its metadata is in the bitmaps of other groups, or lies where the first block and its copies do.
        yield begin, begin + 1 + table_blocks
        yield from _own_tables(descriptor, system, begin, begin + count)
        return
    place = low | high << 32
    if not system.first_block < place < system.blocks:
        raise ImageError(f"its file system is damaged: the bitmap of group {group} lies outside of it")
    bitmap = read(place * system.block_bytes, system.block_bytes)
    if system.ro_compat & METADATA_CHECKSUMS:
        told = crc32c(system.seed, bitmap[: system.per_group // system.ratio // 8])
        if told & (0xFFFFFFFF if system.descriptor_bytes >= 64 else 0xFFFF) != checksum:
            raise ImageError(f"its file system is damaged: the checksum of the bitmap of group {group} is wrong")
    bits = -(-count // system.ratio)
    text = format(int.from_bytes(bitmap, "little"), f"0{len(bitmap) * 8}b")[::-1][:bits]
    if text.count("0") != free:
        raise ImageError(f"its file system is damaged: group {group} says {free} blocks are free, its bitmap not")
    for run in _RUN.finditer(text):
        yield begin + run.start() * system.ratio, begin + run.end() * system.ratio


def _is_whole(descriptor: bytes, system: _Super, group: int) -> bool:
    """Whether a group's descriptor has the checksum that it names, at 0x1E."""
    told = crc32c(crc32c(system.seed, group.to_bytes(4, "little")), descriptor[:0x1E] + bytes(2) + descriptor[0x20:])
    return told & 0xFFFF == int.from_bytes(descriptor[0x1E:0x20], "little")


def _own_tables(descriptor: bytes, system: _Super, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Bitmaps and inode table of a group without a bitmap, where they lie in the group itself: they may fill it all."""
    for low, high in ((0, 0x20), (4, 0x24), (8, 0x28)):
        place = struct.unpack_from("<I", descriptor, low)[0]
        if system.descriptor_bytes >= 64:
            place |= struct.unpack_from("<I", descriptor, high)[0] << 32
        if begin <= place < end:
            yield begin, end
            return


def _idle_journal(read: Read, system: _Super) -> Ranges:
    """The bytes of a journal that has nothing to replay, without its superblock; nothing where it is not simple."""
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
