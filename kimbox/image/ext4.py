"""Finds where a small file lies in an ext4 file system that nobody mounts. Pure: bytes come from a function.

A guest may have written every byte, so that each number is checked and each loop bounded (Linux,
Documentation/filesystems/ext4). What a boot partition never needs is refused: directories and files of many pieces,
inline data, meta block groups.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator

import attrs

from kimbox.errors import ImageError

#: Bytes of the file system, from an offset, so many.
Read = Callable[[int, int], bytes]

SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
ROOT_INODE = 2

#: Features that may stand in `s_feature_incompat`: filetype, recover, extents, 64bit, flex_bg, csum_seed.
UNDERSTOOD = 0x0002 | 0x0004 | 0x0040 | 0x0080 | 0x0200 | 0x2000
WIDE = 0x0080

#: Flag of an inode whose content is found by extents, and how such a tree begins.
EXTENTS_FLAG = 0x80000
EXTENT_MAGIC = 0xF30A

#: A longer extent is allotted and not written yet.
MAX_EXTENT_BLOCKS = 32768

#: A directory with more blocks is none of a boot partition.
MAX_DIRECTORY_BLOCKS = 64


@attrs.frozen
class FileSystem:
    """What the superblock tells."""

    label: str
    read: Read
    block_bytes: int
    blocks: int
    first_block: int
    inode_bytes: int
    inodes: int
    inodes_per_group: int
    descriptor_bytes: int


@attrs.frozen
class Inode:
    """What an inode tells: kind and permissions, size, its blocks as (first in the file, count, first on disk), and the
    time of its content, in Unix seconds without their epoch bits.
    """

    mode: int
    size_bytes: int
    extents: tuple[tuple[int, int, int], ...]
    modified_s: int = 0


def open_at(read: Read) -> FileSystem:
    """The file system whose bytes `read` gives. Raises ImageError if it is none, or not one of a boot partition."""
    block = read(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES)
    inodes, blocks_low = struct.unpack_from("<II", block, 0)
    first_block, log_block = struct.unpack_from("<II", block, 0x14)
    (per_group,) = struct.unpack_from("<I", block, 0x28)
    (magic,) = struct.unpack_from("<H", block, 0x38)
    (inode_bytes,) = struct.unpack_from("<H", block, 0x58)
    (features,) = struct.unpack_from("<I", block, 0x60)
    (descriptor,) = struct.unpack_from("<H", block, 0xFE)
    (blocks_high,) = struct.unpack_from("<I", block, 0x150)
    wide = bool(features & WIDE)
    if magic != MAGIC:
        raise ImageError("it holds no ext4 file system")
    if features & ~UNDERSTOOD or log_block > 2 or first_block > 1 or not per_group or not 128 <= inode_bytes <= 1024:
        raise ImageError("its file system is not one that kimbox reads")
    return FileSystem(
        label=block[0x78:0x88].split(b"\0")[0].decode("ascii", "replace"),
        read=read,
        block_bytes=1024 << log_block,
        blocks=blocks_low | (blocks_high << 32 if wide else 0),
        first_block=first_block,
        inode_bytes=inode_bytes,
        inodes=inodes,
        inodes_per_group=per_group,
        descriptor_bytes=max(descriptor, 64) if wide else 32,
    )


def locate(system: FileSystem, path: str, size_bytes: int) -> int:
    """Where in the file system the content of a file begins that has this size and lies in one piece, in bytes.

    Raises ImageError if there is no such file.
    """
    number = ROOT_INODE
    for name in path.strip("/").split("/"):
        found = _entries(system, inode_of(system, number)).get(name.encode())
        if found is None:
            raise ImageError(f"it has no {path}")
        number = found
    inode = inode_of(system, number)
    if not stat.S_ISREG(inode.mode) or inode.size_bytes != size_bytes:
        raise ImageError(f"its {path} is no file of {size_bytes} bytes")
    blocks = -(-size_bytes // system.block_bytes)
    start = next((start for first, count, start in inode.extents if first == 0 and count >= blocks), None)
    if start is None:
        raise ImageError(f"its {path} is not in one piece")
    return start * system.block_bytes


def inode_of(system: FileSystem, number: int) -> Inode:
    """An inode by its number."""
    if not 0 < number <= system.inodes:
        raise ImageError("its file system is damaged: an inode that cannot be")
    group, index = divmod(number - 1, system.inodes_per_group)
    table = (system.first_block + 1) * system.block_bytes + group * system.descriptor_bytes
    descriptor = system.read(table, system.descriptor_bytes)
    low, high = struct.unpack_from("<I", descriptor, 0x8)[0], 0
    if system.descriptor_bytes >= 64:
        (high,) = struct.unpack_from("<I", descriptor, 0x28)
    place = _place(system, low | high << 32, 1) + index * system.inode_bytes
    raw = system.read(place, 128)
    mode, _, size_low = struct.unpack_from("<HHI", raw, 0)
    (flags,) = struct.unpack_from("<I", raw, 0x20)
    (size_high,) = struct.unpack_from("<I", raw, 0x6C)
    extents = tuple(_extents(system, raw[0x28:0x64])) if flags & EXTENTS_FLAG else ()
    (modified_s,) = struct.unpack_from("<I", raw, 0x10)
    return Inode(mode, size_low | size_high << 32, extents, modified_s)


def _extents(system: FileSystem, node: bytes) -> Iterator[tuple[int, int, int]]:
    """The pieces of a file that has at most four."""
    magic, count, _, depth = struct.unpack_from("<HHHH", node, 0)
    if magic != EXTENT_MAGIC or depth or count > 4:
        return
    for index in range(count):
        first, length, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * index)
        if 0 < length <= MAX_EXTENT_BLOCKS:
            start = high << 32 | low
            _place(system, start, length)
            yield first, length, start


def _place(system: FileSystem, block: int, count: int) -> int:
    """Where blocks begin, in bytes. Raises ImageError if they are not inside of the file system."""
    if not system.first_block < block <= system.blocks - count:
        raise ImageError("its file system is damaged: a block outside of it")
    return block * system.block_bytes


def _entries(system: FileSystem, directory: Inode) -> dict[bytes, int]:
    """Names of a directory, and their inodes."""
    if not stat.S_ISDIR(directory.mode):
        return {}
    found: dict[bytes, int] = {}
    numbers = [start + i for _, count, start in directory.extents for i in range(min(count, MAX_DIRECTORY_BLOCKS))]
    for number in numbers[:MAX_DIRECTORY_BLOCKS]:
        block, at = system.read(number * system.block_bytes, system.block_bytes), 0
        while at + 8 <= len(block):
            inode, length, name_bytes = struct.unpack_from("<IHB", block, at)
            if length < 8 or at + length > len(block) or name_bytes > length - 8:
                raise ImageError("its file system is damaged: a directory that cannot be")
            if inode:
                found[block[at + 8 : at + 8 + name_bytes]] = inode
            at += length
    return found
