"""Removes files and directories from an ext4 file system that nobody mounts, by place and inode, without any command.

Entries and inodes are overwritten with zeros, so that neither names, short targets of symbolic links nor attributes
stay readable. Bitmaps, counts and links are left to `e2fsck -f -p`, which has to run next and mends them by itself.
Format and checksums: Linux, Documentation/filesystems/ext4 (directory, attributes, checksums).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable

from kimbox.image.disk.ext4 import inodes as ext4
from kimbox.image.disk.ext4.directories import Entry
from kimbox.image.disk.ext4.inodes import FileSystem, damaged
from kimbox.image.disk.ext4.superblock import METADATA_CHECKSUMS, crc32c

#: Puts bytes at an offset of the file system.
Write = Callable[[int, bytes], object]

#: The end of a directory's block that has a checksum, without it: inode 0, length 12, no name, a type of its own.
TAIL = struct.pack("<IHBB", 0, 12, 0, 0xDE)
TAIL_BYTES = 12

#: How a block of extended attributes begins (`h_magic`, `h_refcount`), and where its checksum is.
ATTRIBUTES_MAGIC = 0xEA020000
ATTRIBUTES_CHECKSUM = 16


def remove(system: FileSystem, write: Write, entries: Iterable[Entry]) -> None:
    """Removes these names, and each inode that has no other name.

    With a directory everything in it has to be among the entries. `e2fsck -f -p` has to follow, and the file system to
    be opened again. Raises ImageError, with nothing written, where an entry is not what it was.
    """
    gone = list({(entry.block, entry.offset): entry for entry in entries}.values())
    folders = {entry.inode.number for entry in gone if entry.inode.is_folder}
    names = Counter(entry.inode.number for entry in gone)
    inodes = {entry.inode.number: entry.inode for entry in gone}
    freed = [n for n, inode in inodes.items() if inode.is_folder or names[n] >= inode.links]
    if min(inodes, default=ext4.FIRST_INODE) < ext4.FIRST_INODE:
        raise damaged("a name for an inode of the file system's own")
    seed = _seed(system)
    blocks: dict[int, list[Entry]] = {}
    for entry in gone:
        if entry.folder not in folders:  # the blocks of a removed directory are free afterwards
            blocks.setdefault(entry.block, []).append(entry)
    pieces = [_without(system, block, there, seed) for block, there in blocks.items()]
    pieces += _fewer_users(system, Counter(inodes[n].attributes_block for n in freed), seed)
    pieces += [(ext4.inode_place(system, number), bytes(system.inode_bytes)) for number in freed]
    for offset, data in pieces:
        write(offset, data)


def _seed(system: FileSystem) -> int | None:
    """Where checksums of metadata begin, None where there are none."""
    found = system.superblock
    return found.checksum_seed if found.ro_compat & METADATA_CHECKSUMS else None


def _without(system: FileSystem, number: int, gone: list[Entry], seed: int | None) -> tuple[int, bytes]:
    """A block of a directory without these names, and without what is left of others that were removed before."""
    place = ext4.block_place(system, number, 1)
    block = bytearray(system.read(place, system.block_bytes))
    wanted = {entry.offset: entry for entry in gone}
    for offset, length, inode, name in ext4.names_in(bytes(block)):
        entry = wanted.pop(offset, None)
        if entry is not None:
            if (inode, name) != (entry.inode.number, entry.name):
                raise damaged("a directory that changed while it was read")
            block[offset : offset + 4] = bytes(4)
            block[offset + 6 : offset + length] = bytes(length - 6)
        elif inode:
            block[offset + 8 + len(name) : offset + length] = bytes(length - 8 - len(name))
    if wanted:
        raise damaged("a directory that changed while it was read")
    if seed is not None:
        if block[-TAIL_BYTES:-4] != TAIL:
            raise damaged("a directory without a checksum")
        folder = ext4.inode_of(system, gone[0].folder)
        seed = crc32c(seed, struct.pack("<II", folder.number, folder.generation))
        block[-4:] = crc32c(seed, bytes(block[:-TAIL_BYTES])).to_bytes(4, "little")
    return place, bytes(block)


def _fewer_users(system: FileSystem, users: Counter[int], seed: int | None) -> list[tuple[int, bytes]]:
    """Blocks of extended attributes that other inodes share with those that are freed, with their number of users."""
    pieces = []
    for number, count in users.items():
        if not number:
            continue
        place = ext4.block_place(system, number, 1)
        block = bytearray(system.read(place, system.block_bytes))
        magic, total = struct.unpack_from("<II", block, 0)
        if magic != ATTRIBUTES_MAGIC:
            raise damaged("attributes of a file that cannot be")
        if total <= count:  # nobody is left: the block is free afterwards
            continue
        struct.pack_into("<I", block, 4, total - count)
        if seed is not None:
            struct.pack_into("<I", block, ATTRIBUTES_CHECKSUM, 0)
            checksum = crc32c(crc32c(seed, number.to_bytes(8, "little")), bytes(block))
            struct.pack_into("<I", block, ATTRIBUTES_CHECKSUM, checksum)
        pieces.append((place, bytes(block)))
    return pieces
