"""Reads what is on the disk of a job, and checks all of it before a byte is extracted. Nothing is mounted or run.

The guest's root wrote the disk, so every byte is untrusted. `read_contents` raises an error if the file system is
damaged or larger than the file, if two files share a block, or if a name is there twice. Files that must not be created
on the host (devices, links that lead out) are listed in `unsafe`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from kimbox import files
from kimbox.errors import ImageError, StateError
from kimbox.image.disk.ext2.tree import LOST_FOUND
from kimbox.image.disk.ext4 import content, directories, inodes
from kimbox.image.disk.ext4.content import Budget, Run
from kimbox.image.disk.ext4.inodes import FileSystem, Inode
from kimbox.image.disk.ext4.superblock import ERROR_STATE, RECOVER
from kimbox.image.disk.faults import damaged, in_volume, unsupported
from kimbox.jobs.disk import links

#: Maximum number of names on a disk, and of bytes in a path below its root (PATH_MAX of Linux is 4096).
MAX_ENTRIES = 1_000_000
MAX_PATH_BYTES = 3000

#: Maximum number of folders in a path. Functions of Python that walk through folders call themselves at each level.
MAX_LEVELS = 200

#: Why a file is not created on the host.
DEVICE, LEADS_OUT = "a device, socket or FIFO", "a symbolic link that leads out of the disk"

#: `s_state`: the file system was unmounted.
_CLEAN_STATE = 0x1


@dataclass(frozen=True, slots=True)
class File:
    """A file, folder or symbolic link. `path` is below the root, without a slash at its start.

    `runs`: of the first name of a file, its blocks on the disk. `target`: of a symbolic link. `unsafe`: why it must not
    be created; empty if it may be.
    """

    path: bytes
    inode: Inode
    modified_ns: int
    runs: tuple[Run, ...] = ()
    target: bytes = b""
    unsafe: str = ""

    @property
    def mode(self) -> int:
        """The permissions, without the bits for set-user-ID, set-group-ID and sticky."""
        return self.inode.mode & 0o777


@dataclass(frozen=True, slots=True)
class Contents:
    """The checked content of a disk, each folder before its files. `is_clean`: the guest has unmounted it."""

    size_bytes: int
    system: FileSystem
    files: list[File]
    is_clean: bool

    @property
    def unsafe(self) -> list[File]:
        return [file for file in self.files if file.unsafe]

    def find(self, path: bytes) -> File | None:
        """Returns the file of a path; None if there is none."""
        return next((file for file in self.files if file.path == path), None)

    def head(self, path: bytes, limit_bytes: int) -> bytes | None:
        """Returns at most the first bytes of a regular file; None if there is no such file."""
        file = self.find(path)
        return content.head(self.system, file.inode, limit_bytes) if file and file.inode.is_file else None


@contextlib.contextmanager
def opened(image: Path) -> Iterator[Contents]:
    """Yields the checked contents of a disk in a file. No process may write to it meanwhile.

    Raises StateError (`file-not-found`), KimboxError (`not-a-regular-file`) and the errors of `read_contents`.
    """
    if not os.path.lexists(image):
        raise StateError(f"file {image} not found", code="file-not-found", fields={"path": str(image)})
    with files.open_regular(image) as file:
        handle = file.fileno()
        size_bytes = os.fstat(handle).st_size
        try:
            contents = read_contents(lambda offset, size: os.pread(handle, size, offset), size_bytes)
        except ImageError as error:
            raise in_volume(str(image), error) from None
        yield contents


def read_contents(read: inodes.Read, size_bytes: int) -> Contents:
    """Returns the checked contents of a disk of `size_bytes`, whose bytes `read` returns.

    Raises ImageError (`disk-damaged`, `disk-unsupported`).
    """
    system = inodes.open_at(inodes.cached(read))
    superblock = system.superblock
    if system.blocks * system.block_bytes > size_bytes:
        raise damaged("truncated", "it is longer than the disk")
    if superblock.incompat & RECOVER:
        raise unsupported("journal", "the journal of the file system must be replayed first")
    reader = _Reader(system)
    listed = [file for file in reader.files() if file.path.split(b"/")[0] != LOST_FOUND]
    return Contents(
        size_bytes,
        system,
        _with_checked_links(listed),
        is_clean=bool(superblock.state & _CLEAN_STATE) and not superblock.state & ERROR_STATE,
    )


@dataclass(slots=True)
class _Reader:
    """Reads a file system once. `taken` has a byte for each block: whether a file has it."""

    system: FileSystem
    taken: bytearray = field(init=False)
    known: dict[int, File] = field(default_factory=dict)

    def files(self) -> Iterator[File]:
        """Yields every name, checked. Raises ImageError."""
        self.taken = bytearray(self.system.blocks)
        paths: set[bytes] = set()
        root = directories.top(self.system)
        self._claim(root.inode)
        for entry in directories.walk(self.system):
            path = entry.path[1:]
            if path in paths:
                raise damaged("duplicate-name", "a name is in a directory twice")
            paths.add(path)
            if len(paths) > MAX_ENTRIES:
                raise unsupported("too-many-files", f"the disk has more than {MAX_ENTRIES} files")
            if len(path) > MAX_PATH_BYTES:
                raise unsupported("long-path", f"a path on the disk is longer than {MAX_PATH_BYTES} bytes")
            if path.count(b"/") > MAX_LEVELS:
                raise unsupported("deep-path", f"a path on the disk has more than {MAX_LEVELS} folders")
            first = self.known.get(entry.inode.number)
            yield replace(first, path=path, runs=()) if first else self._first(path, entry.inode)

    def _first(self, path: bytes, inode: Inode) -> File:
        """Returns the file of an inode that had no name before."""
        if inode.number < inodes.FIRST_INODE or not inode.links:
            raise damaged("bad-inode", "a name refers to an inode that is reserved or not in use")
        modified_ns = inodes.modified_ns(self.system, inode)
        if inode.is_link:
            file = File(path, inode, modified_ns, target=self._target(inode))
        elif inode.is_file:
            file = File(path, inode, modified_ns, self._claim(inode))
        elif inode.is_folder:
            self._claim(inode)
            file = File(path, inode, modified_ns)
        else:
            file = File(path, inode, modified_ns, unsafe=DEVICE)
        self.known[inode.number] = file
        return file

    def _target(self, inode: Inode) -> bytes:
        """Returns the target of a symbolic link. Raises ImageError if no link can have it."""
        target = content.link_target(self.system, inode)
        if not target or b"\0" in target:
            raise damaged("bad-link", "a symbolic link has an invalid target")
        return target

    def _claim(self, inode: Inode) -> tuple[Run, ...]:
        """Returns the blocks of a file or folder. Raises ImageError if another one has them, too."""
        runs = tuple(content.runs(self.system, inode, Budget()))
        for _, count, start in runs:
            if self.taken.find(1, start, start + count) >= 0:
                raise damaged("shared-block", "two files share a block")
            self.taken[start : start + count] = b"\1" * count
        return runs


def _with_checked_links(listed: list[File]) -> list[File]:
    """Returns the files, in which each symbolic link that leads out of the disk is marked.

    The absolute target of a link to the mounted disk becomes relative.
    """
    targets = {file.path: links.relative(file.path, file.target) for file in listed if file.inode.is_link}
    result, budget = [], Budget(directories.MAX_STEPS)
    for file in listed:
        if file.inode.is_link:
            leads_out = links.leads_out(file.path, targets, budget)
            file = replace(file, target=targets[file.path], unsafe=LEADS_OUT if leads_out else "")
        result.append(file)
    return result
