"""Reads the directory tree of an ext4 file system that is not mounted: every name with its inode. Pure.

A guest chose the names and may have written every byte. Therefore names are bytes that only `shown` prepares for
output, symbolic links are never followed, and a directory with two parents is an error. Directories with a hash tree
are read as a list, as their format allows (Linux, Documentation/filesystems/ext4, directory).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from kimbox.image.disk.ext4 import content, inodes
from kimbox.image.disk.ext4.content import Budget
from kimbox.image.disk.ext4.inodes import FileSystem, Inode
from kimbox.image.disk.faults import damaged

#: Maximum number of steps for a tree: enough for about four million files. An entry takes one step, and one more for
#: each PATH_STEP_BYTES of its path.
MAX_STEPS = 8_000_000
PATH_STEP_BYTES = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory, with its place: inode of the directory, block of the file system, offset in the block."""

    path: bytes
    inode: Inode
    folder: int = 0
    block: int = 0
    offset: int = 0

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


def top(system: FileSystem) -> Entry:
    """Returns the root directory, with an empty path. Raises ImageError if the root inode is not a directory."""
    inode = inodes.inode_of(system, inodes.ROOT_INODE)
    if not inode.is_folder:
        raise damaged("bad-root", "the root inode is not a directory")
    return Entry(b"", inode)


def listed(system: FileSystem, folder: Entry, budget: Budget | None = None) -> Iterator[Entry]:
    """Yields the entries of a directory, in the order of the disk; nothing if `folder` is not a directory."""
    budget = Budget(MAX_STEPS) if budget is None else budget
    if not folder.inode.is_folder:
        return
    unit = system.block_bytes
    for _, count, start in content.runs(system, folder.inode, budget):
        for number in range(start, start + count):
            budget.take()
            for offset, _, inode, name in inodes.names_in(system.read(number * unit, unit)):
                if not inode or name in (b".", b".."):
                    continue
                if not name or b"/" in name or b"\0" in name:
                    raise damaged("bad-name", "invalid name in a directory")
                path = b"%s/%s" % (folder.path, name)
                budget.take(1 + len(path) // PATH_STEP_BYTES)
                yield Entry(path, inodes.inode_of(system, inode), folder.inode.number, number, offset)


def walk(system: FileSystem, folder: Entry | None = None, budget: Budget | None = None) -> Iterator[Entry]:
    """Yields all entries below a directory (default: the root), each directory before its content.

    `folder` itself is not an entry. Open the file system with `inodes.cached`, because inodes are read many times.
    Raises ImageError if the file system is damaged, for example if a directory has two parents.
    """
    budget = Budget(MAX_STEPS) if budget is None else budget
    start = top(system) if folder is None else folder
    known = {inodes.ROOT_INODE, start.inode.number}
    pending = [listed(system, start, budget)]
    while pending:
        for entry in pending[-1]:
            yield entry
            if entry.inode.is_folder:
                if entry.inode.number in known:
                    raise damaged("directory-loop", "a directory has two parents")
                known.add(entry.inode.number)
                pending.append(listed(system, entry, budget))
                break
        else:
            pending.pop()


def matching(system: FileSystem, pattern: str, budget: Budget | None = None) -> list[Entry]:
    """Returns the entries that match an absolute path with wildcards (fnmatch(3)). A wildcard does not match `/`.

    Symbolic links are not followed.
    """
    budget = Budget(MAX_STEPS) if budget is None else budget
    matches = [top(system)]
    for part in pattern.encode().strip(b"/").split(b"/"):
        children = (entry for folder in matches for entry in listed(system, folder, budget))
        matches = [entry for entry in children if fnmatch.fnmatchcase(entry.name, part)]
    return matches


def find(system: FileSystem, path: bytes) -> Entry | None:
    """Returns the entry of an absolute path, or None if it does not exist. Symbolic links are not followed."""
    current: Entry | None = top(system)
    for part in path.strip(b"/").split(b"/"):
        if current is None:
            return None
        current = next((entry for entry in listed(system, current) if entry.name == part), None)
    return current


def shown(path: bytes) -> str:
    r"""Returns a path as printable text. Backslashes, bytes that are not UTF-8 and other unprintable characters are
    escaped as in Python.

    Different paths have different texts.
    """
    return "".join(map(_escaped, path.decode("utf-8", "surrogateescape")))


def _escaped(character: str) -> str:
    code = ord(character)
    if character.isprintable() and character != "\\":
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF:  # must differ from such a byte
        return f"\\u{code:04x}"
    return character.encode("unicode_escape").decode("ascii")
