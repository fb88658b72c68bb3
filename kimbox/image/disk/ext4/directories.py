"""Directory trees of an ext4 file system that nobody mounts: every name with its inode. Pure.

A guest chose the names and may have written every byte: names are bytes, shown only by `shown`, symbolic links are
never followed, and a tree that is no tree is refused. Directories with a hash tree are read as a list, as their format
allows (Linux, Documentation/filesystems/ext4, directory).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

import attrs

from kimbox.image.disk.ext4 import content, inodes
from kimbox.image.disk.ext4.content import Budget
from kimbox.image.disk.ext4.inodes import FileSystem, Inode, damaged

#: Steps for a whole tree; an entry takes one, and one more for each 64 bytes of its path. Some four million files.
MAX_STEPS = 8_000_000
PATH_STEP_BYTES = 64


@attrs.frozen
class Entry:
    """A name in a directory, and where it stands: inode of the directory, block of the file system, offset in it."""

    path: bytes
    inode: Inode
    folder: int = 0
    block: int = 0
    offset: int = 0

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


def top(system: FileSystem) -> Entry:
    """The root directory, with an empty path. Raises ImageError if it is none."""
    inode = inodes.inode_of(system, inodes.ROOT_INODE)
    if not inode.is_folder:
        raise damaged("a root that is no directory")
    return Entry(b"", inode)


def listed(system: FileSystem, folder: Entry, budget: Budget | None = None) -> Iterator[Entry]:
    """What is in a directory, in the order of the disk; nothing where the entry is no directory."""
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
                    raise damaged("a name that cannot be")
                path = b"%s/%s" % (folder.path, name)
                budget.take(1 + len(path) // PATH_STEP_BYTES)
                yield Entry(path, inodes.inode_of(system, inode), folder.inode.number, number, offset)


def walk(system: FileSystem, folder: Entry | None = None, budget: Budget | None = None) -> Iterator[Entry]:
    """All below a directory, the root by default: each directory before what is in it, the directory itself not.

    Open the file system on `inodes.cached` bytes for this. Raises ImageError if it is damaged, for example a directory
    in two places.
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
                    raise damaged("a directory in two places")
                known.add(entry.inode.number)
                pending.append(listed(system, entry, budget))
                break
        else:
            pending.pop()


def matching(system: FileSystem, pattern: str, budget: Budget | None = None) -> list[Entry]:
    """What an absolute path with wildcards (fnmatch(3), in one name each) means. No symbolic link is followed."""
    budget = Budget(MAX_STEPS) if budget is None else budget
    found = [top(system)]
    for part in pattern.encode().strip(b"/").split(b"/"):
        there = (entry for folder in found for entry in listed(system, folder, budget))
        found = [entry for entry in there if fnmatch.fnmatchcase(entry.name, part)]
    return found


def find(system: FileSystem, path: bytes) -> Entry | None:
    """What an absolute path names, None where there is nothing. No symbolic link is followed."""
    found: Entry | None = top(system)
    for part in path.strip(b"/").split(b"/"):
        if found is None:
            return None
        found = next((entry for entry in listed(system, found) if entry.name == part), None)
    return found


def shown(path: bytes) -> str:
    r"""A path as text for people and records: what is not printable, not UTF-8, or a backslash is escaped as in Python.

    Different paths stay different.
    """
    return "".join(map(_shown, path.decode("utf-8", "surrogateescape")))


def _shown(letter: str) -> str:
    code = ord(letter)
    if letter.isprintable() and letter != "\\":
        return letter
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF:  # not to be confused with such a byte
        return f"\\u{code:04x}"
    return letter.encode("unicode_escape").decode("ascii")
