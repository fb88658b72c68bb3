"""Differences between the files of two ext4 file systems that are not mounted. Pure.

The places of files on the disk are not compared: if one file has another size, every later file has another place.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from itertools import zip_longest

from kimbox.image.disk.ext4 import content, directories, inodes
from kimbox.image.disk.ext4.inodes import EXTENTS_FLAG, FileSystem, Inode
from kimbox.image.disk.faults import unsupported

#: Maximum number of files in one file system.
MAX_ENTRIES = 2_000_000

#: Flag of a folder with a hash tree. Like EXTENTS_FLAG it describes how the file system stores the inode.
HASH_TREE_FLAG = 0x1000

#: Size of an inode without its extra fields, and of the header of a block of extended attributes, in bytes. The header
#: has a checksum that depends on the place of the block.
OLD_INODE_BYTES = 128
ATTRIBUTES_HEADER_BYTES = 32


class Aspect(StrEnum):
    """How a file differs. The lock has these words (schemas/lock.schema.json)."""

    #: Only one of both has the path. What is below such a folder is not listed.
    PRESENCE = "presence"
    TYPE = "type"
    OWNER = "owner"
    MODE = "mode"
    TIME = "time"
    #: The content of a file, the target of a symbolic link, or the numbers of a device.
    CONTENT = "content"
    #: Extended attributes (for example capabilities), flags, and the number of hard links.
    ATTRIBUTES = "attributes"


#: The aspects of each path that differs.
Different = dict[bytes, tuple[Aspect, ...]]


def compare(old: FileSystem, new: FileSystem, prefix: bytes = b"") -> Different:
    """Returns the paths that differ, each with `prefix` before it. The path of the root folder is the prefix alone.

    Raises ImageError if a file system is damaged, or has more than MAX_ENTRIES files.
    """
    before, after = ({b"": inodes.ROOT_INODE} | numbers(system) for system in (old, new))
    both = before.keys() & after.keys()
    missing = before.keys() ^ after.keys()
    found: Different = {path: (Aspect.PRESENCE,) for path in missing if path.rpartition(b"/")[0] in both}
    known: dict[tuple[int, int], tuple[Aspect, ...]] = {}  # a file with several names is compared once
    for path in both:
        pair = before[path], after[path]
        if pair not in known:
            known[pair] = tuple(_aspects(old, inodes.inode_of(old, pair[0]), new, inodes.inode_of(new, pair[1])))
        if known[pair]:
            found[path] = known[pair]
    return {prefix + path: aspects for path, aspects in sorted(found.items())}


def numbers(system: FileSystem) -> dict[bytes, int]:
    """Returns every path of a file system, with the number of its inode. Raises ImageError (`too-many-files`)."""
    found: dict[bytes, int] = {}
    for entry in directories.walk(system):
        found[entry.path] = entry.inode.number
        if len(found) > MAX_ENTRIES:
            raise unsupported("too-many-files", f"the file system has more than {MAX_ENTRIES} files")
    return found


def is_same_content(old_system: FileSystem, old: Inode, new_system: FileSystem, new: Inode) -> bool:
    """Whether two files, links or devices of one type have the same content, target or numbers. True for folders."""
    if old.is_folder:
        return True
    if old.is_link:
        return content.link_target(old_system, old) == content.link_target(new_system, new)
    if old.size_bytes != new.size_bytes:
        return False
    if not old.is_file:
        return old.block == new.block
    both = ((old_system, old), (new_system, new))
    contents = (content.chunks(system, inode, inode.size_bytes) for system, inode in both)
    return all(old_chunk == new_chunk for old_chunk, new_chunk in zip_longest(*contents))


def _aspects(old_system: FileSystem, old: Inode, new_system: FileSystem, new: Inode) -> list[Aspect]:
    """Returns the aspects in which two inodes differ."""
    if old.mode >> 12 != new.mode >> 12:
        return [Aspect.TYPE]
    is_different = {
        Aspect.OWNER: (old.uid, old.gid) != (new.uid, new.gid),
        Aspect.MODE: old.mode != new.mode,
        Aspect.TIME: old.modified_s != new.modified_s,
        Aspect.CONTENT: not is_same_content(old_system, old, new_system, new),
        Aspect.ATTRIBUTES: _attributes(old_system, old) != _attributes(new_system, new),
    }
    return [aspect for aspect, differs in is_different.items() if differs]


def _attributes(system: FileSystem, inode: Inode) -> tuple[bytes, bytes, int, int]:
    """Returns the extended attributes in the inode and in their block, the flags, and the number of hard links.

    The links of a folder are its subfolders, which are compared themselves.
    """
    raw = system.read(inodes.inode_place(system, inode.number), system.inode_bytes)
    inside = b""
    if len(raw) > OLD_INODE_BYTES + 2:
        inside = raw[OLD_INODE_BYTES + struct.unpack_from("<H", raw, OLD_INODE_BYTES)[0] :]
    outside = b""
    if inode.attributes_block:
        place = inodes.block_place(system, inode.attributes_block, 1)
        outside = system.read(place, system.block_bytes)[ATTRIBUTES_HEADER_BYTES:]
    return inside, outside, inode.flags & ~(EXTENTS_FLAG | HASH_TREE_FLAG), 0 if inode.is_folder else inode.links
