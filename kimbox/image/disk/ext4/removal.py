"""Removes files and directories from an ext4 file system that is not mounted, by place and inode.

Entries and inodes are overwritten with zeros, so that names, targets of short symbolic links and attributes cannot be
read any more. Bitmaps, counts and numbers of links are not changed: `e2fsck -f -p` must run next, and repairs them.
Format and checksums: Linux, Documentation/filesystems/ext4 (directory, attributes, checksums).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable

from kimbox.errors import ImageError
from kimbox.image.disk.ext4 import inodes as ext4
from kimbox.image.disk.ext4.directories import Entry
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.ext4.superblock import METADATA_CHECKSUMS, crc32c
from kimbox.image.disk.faults import damaged

#: Writes bytes at an offset of the file system.
Write = Callable[[int, bytes], object]

#: The last entry of a directory's block with a checksum, without the checksum: inode 0, length 12, no name, type 0xDE.
TAIL = struct.pack("<IHBB", 0, 12, 0, 0xDE)
TAIL_BYTES = 12

#: Magic number of a block of extended attributes (`h_magic`), and the offset of its checksum.
ATTRIBUTES_MAGIC = 0xEA020000
ATTRIBUTES_CHECKSUM = 16


def remove(system: FileSystem, write: Write, entries: Iterable[Entry]) -> None:
    """Removes these names, and each inode that has no other name.

    If a directory is removed, all its content must be among the entries. Then run `e2fsck -f -p` and open the file
    system again. Raises ImageError, and writes nothing, if an entry is not on the disk any more.
    """
    removed = list({(entry.block, entry.offset): entry for entry in entries}.values())
    folders = {entry.inode.number for entry in removed if entry.inode.is_folder}
    names = Counter(entry.inode.number for entry in removed)
    inodes = {entry.inode.number: entry.inode for entry in removed}
    freed = [n for n, inode in inodes.items() if inode.is_folder or names[n] >= inode.links]
    if min(inodes, default=ext4.FIRST_INODE) < ext4.FIRST_INODE:
        raise damaged("reserved-inode", "a directory has a name for a reserved inode")
    seed = _seed(system)
    entries_of: dict[int, list[Entry]] = {}
    for entry in removed:
        if entry.folder not in folders:  # the blocks of a removed directory are free afterwards
            entries_of.setdefault(entry.block, []).append(entry)
    pieces = [_without(system, block, in_block, seed) for block, in_block in entries_of.items()]
    pieces += _with_fewer_users(system, Counter(inodes[n].attributes_block for n in freed), seed)
    pieces += [(ext4.inode_place(system, number), bytes(system.inode_bytes)) for number in freed]
    for offset, data in pieces:
        write(offset, data)


def _seed(system: FileSystem) -> int | None:
    """Returns the start value of the checksums of metadata, or None if the file system has none."""
    superblock = system.superblock
    return superblock.checksum_seed if superblock.ro_compat & METADATA_CHECKSUMS else None


def _without(system: FileSystem, number: int, removed: list[Entry], seed: int | None) -> tuple[int, bytes]:
    """Returns place and new content of a block of a directory, without these names.

    Remains of names that were removed earlier are cleared, too.
    """
    place = ext4.block_place(system, number, 1)
    block = bytearray(system.read(place, system.block_bytes))
    remaining = {entry.offset: entry for entry in removed}
    for offset, length, inode, name in ext4.names_in(bytes(block)):
        entry = remaining.pop(offset, None)
        if entry is not None:
            if (inode, name) != (entry.inode.number, entry.name):
                raise _changed()
            block[offset : offset + 4] = bytes(4)
            block[offset + 6 : offset + length] = bytes(length - 6)
        elif inode:
            block[offset + 8 + len(name) : offset + length] = bytes(length - 8 - len(name))
    if remaining:
        raise _changed()
    if seed is not None:
        if block[-TAIL_BYTES:-4] != TAIL:
            raise damaged("no-directory-checksum", "a directory has no checksum")
        folder = ext4.inode_of(system, removed[0].folder)
        seed = crc32c(seed, struct.pack("<II", folder.number, folder.generation))
        block[-4:] = crc32c(seed, bytes(block[:-TAIL_BYTES])).to_bytes(4, "little")
    return place, bytes(block)


def _changed() -> ImageError:
    return damaged("directory-changed", "a directory differs from what was read before")


def _with_fewer_users(system: FileSystem, freed: Counter[int], seed: int | None) -> list[tuple[int, bytes]]:
    """Returns place and new content of the blocks of extended attributes that keep a user.

    Several inodes can share such a block. `freed`: for each block, the number of its users that are removed.
    """
    pieces = []
    for number, count in freed.items():
        if not number:
            continue
        place = ext4.block_place(system, number, 1)
        block = bytearray(system.read(place, system.block_bytes))
        magic, total = struct.unpack_from("<II", block, 0)
        if magic != ATTRIBUTES_MAGIC:
            raise damaged("bad-attributes", "invalid block of extended attributes")
        if total <= count:  # no user remains: the block is free afterwards
            continue
        struct.pack_into("<I", block, 4, total - count)
        if seed is not None:
            struct.pack_into("<I", block, ATTRIBUTES_CHECKSUM, 0)
            checksum = crc32c(crc32c(seed, number.to_bytes(8, "little")), bytes(block))
            struct.pack_into("<I", block, ATTRIBUTES_CHECKSUM, checksum)
        pieces.append((place, bytes(block)))
    return pieces
