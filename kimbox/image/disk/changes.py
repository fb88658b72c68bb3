"""What a maintainer changed: packages and files of one disk against those of the image that it was made from.

Both are disks of kimbox's layout. Files of dpkg's own database are left out: they say nothing that the packages do not.
Paths are escaped by `directories.shown` where they are printed or recorded, because a guest chose them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import dpkg
from kimbox.image.disk.dpkg import merged_path
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories, inodes
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.disk.ext4.inodes import FileSystem, Inode
from kimbox.image.disk.view import DiskView

#: Version of the record.
FORMAT = 1

#: More files of one file system are not looked at.
MAX_ENTRIES = 2_000_000

#: A file that is larger counts as changed where its time did: its content is not compared. That of others is, whatever
#: their time: two versions may be of one second, and a guest may set any time.
MAX_COMPARED_BYTES = 64 << 20


@attrs.frozen
class Changes:
    """What differs, sorted; `files` are those that belong to no package that came, went or moved."""

    #: Name -> versions before and after, the empty one where there is none.
    packages: dict[str, tuple[str, str]]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    #: How many files came, went or changed with those packages.
    package_files: int

    def as_json(self) -> dict[str, Any]:
        """As it is recorded, and in the output of --json."""
        return {
            "format": FORMAT,
            "packages": [{"name": n, "old": old, "new": new} for n, (old, new) in self.packages.items()],
            "files": {"added": list(self.added), "removed": list(self.removed), "changed": list(self.changed)},
            "package_files": self.package_files,
        }

    def lines(self) -> list[str]:
        """For people."""
        told = [f"{n}: {old or 'not there'} -> {new or 'removed'}" for n, (old, new) in self.packages.items()]
        told += [f"{self.package_files} files of these packages"] if self.packages else []
        told += [f"+ {path}" for path in self.added]
        told += [f"- {path}" for path in self.removed]
        told += [f"~ {path}" for path in self.changed]
        return told or ["nothing differs"]


def find(former: DiskView, disk: DiskView, *, on_part: Callable[[str], None] = lambda _: None) -> Changes:
    """What differs between two disks of kimbox's layout. Raises ImageError if one cannot be read."""
    on_part("/")
    old, new = former.root.file_system, disk.root.file_system
    versions = _different(_versions(old), _versions(new))
    of_packages = dpkg.files_of(old, versions) | dpkg.files_of(new, versions)
    parts = [_compare(old, new, b"")]
    on_part("/boot")
    parts.append(_compare(former.boot.file_system, disk.boot.file_system, b"/boot"))
    paths = [set.union(*sets) for sets in zip(*parts, strict=True)]
    count = sum(merged_path(path) in of_packages for changed in paths for path in changed)

    def named(changed: set[bytes]) -> tuple[str, ...]:
        own = (path for path in changed if merged_path(path) not in of_packages)
        return tuple(sorted(shown(path) for path in own if not path.startswith(dpkg.FOLDER + b"/")))

    added, removed, changed = map(named, paths)
    return Changes(versions, added, removed, changed, count)


def _different(old: dict[str, str], new: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Packages whose version is not the same."""
    both = {name: (old.get(name, ""), new.get(name, "")) for name in sorted({*old, *new})}
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def _compare(old: FileSystem, new: FileSystem, prefix: bytes) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """Paths that came, went, and changed, with `prefix` before them; of a folder only permissions and owner count."""
    before, after = _inodes(old), _inodes(new)
    pairs = {path: (before[path], after[path]) for path in before.keys() & after.keys()}
    told: dict[tuple[int, int], bool] = {}  # a file of many names is compared once
    for pair in pairs.values():
        if pair not in told:
            told[pair] = _differs(old, inodes.inode_of(old, pair[0]), new, inodes.inode_of(new, pair[1]))
    changed = {path for path, pair in pairs.items() if told[pair]}
    came, went = after.keys() - before.keys(), before.keys() - after.keys()
    return {prefix + path for path in came}, {prefix + path for path in went}, {prefix + path for path in changed}


def _inodes(system: FileSystem) -> dict[bytes, int]:
    """Every path of a file system, with its inode."""
    found: dict[bytes, int] = {}
    for entry in directories.walk(system):
        found[entry.path] = entry.inode.number
        if len(found) > MAX_ENTRIES:
            raise ImageError(f"the disk holds more than {MAX_ENTRIES} files")
    return found


def _differs(old: FileSystem, one: Inode, new: FileSystem, two: Inode) -> bool:
    if (one.mode, one.uid, one.gid) != (two.mode, two.uid, two.gid):
        return True
    if one.is_folder:
        return False
    if one.is_link:
        return ext4data.link_target(old, one) != ext4data.link_target(new, two)
    if one.size_bytes != two.size_bytes:
        return True
    if not one.is_file:
        return one.block != two.block  # the numbers of a device
    if one.size_bytes > MAX_COMPARED_BYTES:
        return one.modified_s != two.modified_s
    contents = (ext4data.chunks(system, inode, inode.size_bytes) for system, inode in ((old, one), (new, two)))
    return any(piece != other for piece, other in zip_longest(*contents))


def _versions(system: FileSystem) -> dict[str, str]:
    """Installed packages and their versions."""
    return {name: version for name, (version, _) in dpkg.installed(system).items()}
