"""Inodes and directory blocks of an ext4 file system that nobody mounts. Pure: bytes come from a function.

A guest may have written every byte, so that each number is checked and each loop bounded (Linux,
Documentation/filesystems/ext4). Features that change the format in a way that kimbox does not know are refused: inline
data, large extended attributes, meta block groups, encryption. Content of files is read by `content`, trees by
`directories`. Only `locate` finds a file here: one of the boot partition, with few and small reads.
"""

from __future__ import annotations

import stat
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk.ext4.superblock import SUPERBLOCK_BYTES, WIDE, Superblock

#: Bytes of the file system, from an offset, so many.
Read = Callable[[int, int], bytes]

#: The inode of the root directory; and the first that is not the file system's own: `s_first_ino` is never lower.
ROOT_INODE, FIRST_INODE = 2, 11

#: Features that may stand in `s_feature_incompat`: filetype, recover, extents, 64bit, flex_bg, csum_seed.
UNDERSTOOD = 0x0002 | 0x0004 | 0x0040 | 0x0080 | 0x0200 | 0x2000

#: Flag of an inode whose content is found by extents, and how such a tree begins.
EXTENTS_FLAG = 0x80000
EXTENT_MAGIC = 0xF30A

#: A longer extent is allotted and not written yet.
MAX_EXTENT_BLOCKS = 32768

#: A directory with more blocks is none of a boot partition.
MAX_DIRECTORY_BLOCKS = 64

#: `cached` reads pieces of this size and keeps so many of them.
PIECE_BYTES = 64 << 10
MAX_PIECES = 256


@attrs.frozen
class FileSystem:
    """A file system whose superblock was checked, with its bytes. `superblock` has the other numbers."""

    label: str
    read: Read
    block_bytes: int
    blocks: int
    first_block: int
    inode_bytes: int
    inodes: int
    inodes_per_group: int
    descriptor_bytes: int
    superblock: Superblock


@attrs.frozen
class Inode:
    """An inode. `block` is its `i_block`: the root of the extent tree, a block map, or a short symlink's target.

    `modified_s` is the time of its content in Unix seconds without their epoch bits; `attributes_block` holds extended
    attributes, 0 where there are none outside of the inode.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    links: int
    flags: int
    generation: int
    modified_s: int
    attributes_block: int
    block: bytes

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def damaged(what: str) -> ImageError:
    """The error for a file system that cannot be as it is."""
    return ImageError(f"its file system is damaged: {what}")


def cached(read: Read) -> Read:
    """`read` with a cache for small pieces: inode tables and directories are read many times in small parts.

    What is longer than a piece is read directly. Writes are not seen: open the file system again after a write.
    """
    pieces: OrderedDict[int, bytes] = OrderedDict()

    def piece(number: int) -> bytes:
        data = pieces.get(number)
        if data is None:
            data = pieces[number] = read(number * PIECE_BYTES, PIECE_BYTES)
            if len(pieces) > MAX_PIECES:
                pieces.popitem(last=False)
        else:
            pieces.move_to_end(number)
        return data

    def read_cached(offset: int, size: int) -> bytes:
        number, start = divmod(offset, PIECE_BYTES)
        if start + size <= PIECE_BYTES:
            return piece(number)[start : start + size]
        return read(offset, size)

    return read_cached


def _whole(read: Read) -> Read:
    """`read`, with an ImageError where there are fewer bytes than asked for."""

    def read_all(offset: int, size: int) -> bytes:
        data = read(offset, size)
        if len(data) != size:
            raise damaged("it ends before its end")
        return data

    return read_all


def open_at(read: Read) -> FileSystem:
    """The file system whose bytes `read` gives. Raises ImageError if it is none, or not one that kimbox reads."""
    read = _whole(read)
    found = Superblock.parse(read(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES))
    is_known = not found.incompat & ~UNDERSTOOD and found.log_block <= 2 and found.first_block <= 1
    if not is_known or not found.inodes_per_group or not 128 <= found.inode_bytes <= 1024:
        raise ImageError("its file system is not one that kimbox reads")
    return FileSystem(
        label=found.label,
        read=read,
        block_bytes=1024 << found.log_block,
        blocks=found.blocks,
        first_block=found.first_block,
        inode_bytes=found.inode_bytes,
        inodes=found.inodes,
        inodes_per_group=found.inodes_per_group,
        descriptor_bytes=max(found.descriptor_bytes, 64) if found.incompat & WIDE else 32,
        superblock=found,
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
    if not inode.is_file or inode.size_bytes != size_bytes:
        raise ImageError(f"its {path} is no file of {size_bytes} bytes")
    blocks = -(-size_bytes // system.block_bytes)
    extents = direct_extents(system, inode)
    start = next((start for first, count, start in extents if first == 0 and count >= blocks), None)
    if start is None:
        raise ImageError(f"its {path} is not in one piece")
    return start * system.block_bytes


def inode_place(system: FileSystem, number: int) -> int:
    """Where an inode lies, in bytes."""
    if not 0 < number <= system.inodes:
        raise damaged("an inode that cannot be")
    group, index = divmod(number - 1, system.inodes_per_group)
    table = (system.first_block + 1) * system.block_bytes + group * system.descriptor_bytes
    descriptor = system.read(table, system.descriptor_bytes)
    low, high = struct.unpack_from("<I", descriptor, 0x8)[0], 0
    if system.descriptor_bytes >= 64:
        (high,) = struct.unpack_from("<I", descriptor, 0x28)
    in_table = index * system.inode_bytes
    return block_place(system, low | high << 32, in_table // system.block_bytes + 1) + in_table


def inode_of(system: FileSystem, number: int) -> Inode:
    """An inode by its number."""
    raw = system.read(inode_place(system, number), 128)
    mode, uid, size, _, _, modified_s, _, gid, links, _, flags, _ = struct.unpack_from("<HHIIIIIHHIII", raw, 0)
    generation, attributes, size_high = struct.unpack_from("<III", raw, 0x64)
    attributes_high, uid_high, gid_high = struct.unpack_from("<HHH", raw, 0x76)
    return Inode(
        number=number,
        mode=mode,
        uid=uid | uid_high << 16,
        gid=gid | gid_high << 16,
        size_bytes=size | size_high << 32,
        links=links,
        flags=flags,
        generation=generation,
        modified_s=modified_s,
        attributes_block=attributes | attributes_high << 32,
        block=raw[0x28:0x64],
    )


def direct_extents(system: FileSystem, inode: Inode) -> tuple[tuple[int, int, int], ...]:
    """The blocks of a file in at most four pieces, as (first in the file, count, first on disk); none for others."""
    if not inode.flags & EXTENTS_FLAG:
        return ()
    magic, count, _, depth = struct.unpack_from("<HHHH", inode.block, 0)
    if magic != EXTENT_MAGIC or depth or count > 4:
        return ()
    found = []
    for index in range(count):
        first, length, high, low = struct.unpack_from("<IHHI", inode.block, 12 + 12 * index)
        if 0 < length <= MAX_EXTENT_BLOCKS:
            start = high << 32 | low
            block_place(system, start, length)
            found.append((first, length, start))
    return tuple(found)


def block_place(system: FileSystem, block: int, count: int) -> int:
    """Where blocks begin, in bytes. Raises ImageError if they are not inside of the file system."""
    if not system.first_block < block <= system.blocks - count:
        raise damaged("a block outside of it")
    return block * system.block_bytes


def names_in(block: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The entries of a directory's block, free ones too: offset, length of the record, inode (0: free), name.

    An interior block of a hash tree looks like one free entry, and its root like `.` and `..`.
    """
    at = 0
    while at + 8 <= len(block):
        inode, length, name_bytes = struct.unpack_from("<IHB", block, at)
        if length < 8 or at + length > len(block) or name_bytes > length - 8:
            raise damaged("a directory that cannot be")
        yield at, length, inode, block[at + 8 : at + 8 + name_bytes]
        at += length


def _entries(system: FileSystem, directory: Inode) -> dict[bytes, int]:
    """Names of a directory of a boot partition, and their inodes."""
    if not directory.is_folder:
        return {}
    extents = direct_extents(system, directory)
    numbers = [start + i for _, count, start in extents for i in range(min(count, MAX_DIRECTORY_BLOCKS))]
    found: dict[bytes, int] = {}
    for number in numbers[:MAX_DIRECTORY_BLOCKS]:
        block = system.read(number * system.block_bytes, system.block_bytes)
        found.update({name: inode for _, _, inode, name in names_in(block) if inode})
    return found
