"""Reads inodes and directory blocks of an ext4 file system that is not mounted. Pure: bytes come from a function.

Format: Linux, Documentation/filesystems/ext4. A guest may have written every byte. Therefore each number is checked,
and each loop has a limit. Features that change the format in an unknown way are rejected: inline data, large extended
attributes, meta block groups, encryption. `content` reads files and `directories` reads trees. Only `locate` searches
a file in this module: a file of the boot partition, with few small reads.
"""

from __future__ import annotations

import stat
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kimbox.errors import ImageError
from kimbox.image.disk.ext4.superblock import SUPERBLOCK_BYTES, WIDE, Superblock
from kimbox.image.disk.faults import damaged, exact, unsupported

#: Reads bytes: arguments are the offset and the number of bytes.
Read = Callable[[int, int], bytes]

#: The inode of the root directory, and the first inode that is not reserved (`s_first_ino` is never lower).
ROOT_INODE, FIRST_INODE = 2, 11

#: The features of `s_feature_incompat` that kimbox knows: filetype, recover, extents, 64bit, flex_bg, csum_seed.
KNOWN_FEATURES = 0x0002 | 0x0004 | 0x0040 | 0x0080 | 0x0200 | 0x2000

#: Flag of an inode with an extent tree, and the magic number of a node of the tree.
EXTENTS_FLAG = 0x80000
EXTENT_MAGIC = 0xF30A

#: Maximum length of an extent with content, in blocks. A longer one is allocated and not written yet.
MAX_EXTENT_BLOCKS = 32768

#: End of the field with the additional bits of the time of the last change (`i_mtime_extra`) in an inode, in bytes.
MODIFIED_EXTRA_END = 0x8C

#: Maximum number of blocks that `locate` reads of a directory.
MAX_DIRECTORY_BLOCKS = 64

#: Size of the pieces that `cached` reads, in bytes, and the maximum number of pieces that it keeps.
PIECE_BYTES = 64 << 10
MAX_PIECES = 256


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system with a checked superblock. `read` returns its bytes, `superblock` has the other numbers."""

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


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode. `block` is `i_block`: the root of the extent tree, a block map, or the target of a short symbolic link.

    `modified_s`: modification time of the content in Unix seconds, without the epoch bits. `attributes_block`: the
    block with extended attributes; 0 if there are none outside the inode.
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


def cached(read: Read) -> Read:
    """Returns `read` with a cache, because inode tables and directories are read many times in small parts.

    Reads that are longer than a piece are not cached. Later writes are not visible: open the file system again after a
    write.
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


def open_at(read: Read) -> FileSystem:
    """Returns the file system whose bytes `read` returns.

    Raises ImageError if the bytes are not a file system, or if kimbox does not know its features.
    """
    read = exact(read)
    superblock = Superblock.parse(read(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES))
    is_known = not superblock.incompat & ~KNOWN_FEATURES and superblock.log_block <= 2 and superblock.first_block <= 1
    if not is_known or not superblock.inodes_per_group or not 128 <= superblock.inode_bytes <= 1024:
        raise unsupported("unknown-features", "the file system has features or sizes that kimbox does not know")
    return FileSystem(
        label=superblock.label,
        read=read,
        block_bytes=1024 << superblock.log_block,
        blocks=superblock.blocks,
        first_block=superblock.first_block,
        inode_bytes=superblock.inode_bytes,
        inodes=superblock.inodes,
        inodes_per_group=superblock.inodes_per_group,
        descriptor_bytes=max(superblock.descriptor_bytes, 64) if superblock.incompat & WIDE else 32,
        superblock=superblock,
    )


def locate(system: FileSystem, path: str, size_bytes: int) -> int:
    """Returns the offset in the file system, in bytes, of a file of `size_bytes` that is in one piece.

    Raises ImageError if there is no such file.
    """
    number = ROOT_INODE
    for name in path.strip("/").split("/"):
        child = _entries(system, inode_of(system, number)).get(name.encode())
        if child is None:
            raise ImageError(
                f"the file system has no file {path}", code="file-not-found", fields={"path": path, "fault": "no-file"}
            )
        number = child
    inode = inode_of(system, number)
    if not inode.is_file or inode.size_bytes != size_bytes:
        raise unsupported("not-that-file", f"{path} is not a regular file of {size_bytes} bytes")
    blocks = -(-size_bytes // system.block_bytes)
    extents = direct_extents(system, inode)
    start = next((start for first, count, start in extents if first == 0 and count >= blocks), None)
    if start is None:
        raise unsupported("file-in-pieces", f"{path} is not in one piece on the disk")
    return start * system.block_bytes


def inode_place(system: FileSystem, number: int) -> int:
    """Returns the offset of an inode in the file system, in bytes. Raises ImageError if the number is invalid."""
    if not 0 < number <= system.inodes:
        raise damaged("bad-inode-number", f"invalid inode number {number}")
    group, index = divmod(number - 1, system.inodes_per_group)
    table = (system.first_block + 1) * system.block_bytes + group * system.descriptor_bytes
    descriptor = system.read(table, system.descriptor_bytes)
    low, high = struct.unpack_from("<I", descriptor, 0x8)[0], 0
    if system.descriptor_bytes >= 64:
        (high,) = struct.unpack_from("<I", descriptor, 0x28)
    in_table = index * system.inode_bytes
    return block_place(system, low | high << 32, in_table // system.block_bytes + 1) + in_table


def inode_of(system: FileSystem, number: int) -> Inode:
    """Returns the inode with that number. Raises ImageError if the number is invalid."""
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


def modified_ns(system: FileSystem, inode: Inode) -> int:
    """Returns the time of the last change of the content, in nanoseconds since 1970.

    The fields behind the first 128 bytes of an inode have the nanoseconds and two more bits of the seconds.
    """
    seconds: int = (inode.modified_s + (1 << 31)) % (1 << 32) - (1 << 31)
    if system.inode_bytes < MODIFIED_EXTRA_END:
        return seconds * 1_000_000_000
    raw = system.read(inode_place(system, inode.number) + 128, MODIFIED_EXTRA_END - 128)
    (extra_bytes,) = struct.unpack_from("<H", raw, 0)
    extra = int.from_bytes(raw[8:12], "little") if extra_bytes >= MODIFIED_EXTRA_END - 128 else 0
    return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + min(extra >> 2, 999_999_999)


def direct_extents(system: FileSystem, inode: Inode) -> tuple[tuple[int, int, int], ...]:
    """Returns the blocks of a file with at most four extents, as (first in the file, count, first on disk).

    For any other file, the result is empty.
    """
    if not inode.flags & EXTENTS_FLAG:
        return ()
    magic, count, _, depth = struct.unpack_from("<HHHH", inode.block, 0)
    if magic != EXTENT_MAGIC or depth or count > 4:
        return ()
    runs = []
    for index in range(count):
        first, length, high, low = struct.unpack_from("<IHHI", inode.block, 12 + 12 * index)
        if 0 < length <= MAX_EXTENT_BLOCKS:
            start = high << 32 | low
            block_place(system, start, length)
            runs.append((first, length, start))
    return tuple(runs)


def block_place(system: FileSystem, block: int, count: int) -> int:
    """Returns the offset of `count` blocks, in bytes. Raises ImageError if they are not inside the file system."""
    if not system.first_block < block <= system.blocks - count:
        raise damaged("block-outside", "a block number is outside the file system")
    return block * system.block_bytes


def names_in(block: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields the entries of a directory's block, also the free ones: offset, length of the record, inode, name.

    The inode of a free entry is 0. In this format, an inner block of a hash tree is one free entry, and the root of a
    hash tree is `.` and `..`.
    """
    at = 0
    while at + 8 <= len(block):
        inode, length, name_bytes = struct.unpack_from("<IHB", block, at)
        if length < 8 or at + length > len(block) or name_bytes > length - 8:
            raise damaged("bad-directory", "invalid entry in a directory")
        yield at, length, inode, block[at + 8 : at + 8 + name_bytes]
        at += length


def _entries(system: FileSystem, directory: Inode) -> dict[bytes, int]:
    """Returns the names in a directory of a boot partition, with their inodes."""
    if not directory.is_folder:
        return {}
    extents = direct_extents(system, directory)
    numbers = [start + i for _, count, start in extents for i in range(min(count, MAX_DIRECTORY_BLOCKS))]
    inode_of_name: dict[bytes, int] = {}
    for number in numbers[:MAX_DIRECTORY_BLOCKS]:
        block = system.read(number * system.block_bytes, system.block_bytes)
        inode_of_name.update({name: inode for _, _, inode, name in names_in(block) if inode})
    return inode_of_name
