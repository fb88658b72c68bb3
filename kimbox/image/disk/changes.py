"""Differences in packages and files between a disk and the image that it was created from.

Both disks have kimbox's layout. Files of dpkg's own database are left out, because the list of packages already has
that information. Paths are escaped by `directories.shown` before they are printed or recorded, because a guest chose
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from kimbox.image.disk import dpkg, trees
from kimbox.image.disk.dpkg import merged_path
from kimbox.image.disk.ext4 import inodes
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.disk.ext4.inodes import FileSystem, Inode
from kimbox.image.disk.view import DiskView

#: Version of the record.
FORMAT = 1

#: Maximum size of a file whose content is compared, in bytes. A larger file counts as changed if its time changed.
#: For smaller files the time is not used: two versions may be of the same second, and a guest may set any time.
MAX_COMPARED_BYTES = 64 << 20


@attrs.frozen
class Changes:
    """The differences, sorted. Files of packages whose version changed are not in the lists, only in a count."""

    #: Name -> version before and after; an empty version means not installed.
    packages: dict[str, tuple[str, str]]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    #: Number of files of those packages that were added, removed or changed.
    package_files: int

    def as_json(self) -> dict[str, Any]:
        """Returns the differences as they are recorded, and as they are in the output of --json."""
        return {
            "format": FORMAT,
            "packages": [{"name": n, "old": old, "new": new} for n, (old, new) in self.packages.items()],
            "files": {"added": list(self.added), "removed": list(self.removed), "changed": list(self.changed)},
            "package_files": self.package_files,
        }

    def lines(self) -> list[str]:
        """Returns the differences as lines of text."""
        lines = [f"{n}: {old or 'not installed'} -> {new or 'removed'}" for n, (old, new) in self.packages.items()]
        lines += [f"{self.package_files} files of these packages"] if self.packages else []
        lines += [f"+ {path}" for path in self.added]
        lines += [f"- {path}" for path in self.removed]
        lines += [f"~ {path}" for path in self.changed]
        return lines or ["no differences"]


def find(former: DiskView, disk: DiskView, *, on_part: Callable[[str], None] = lambda _: None) -> Changes:
    """Returns the differences between two disks of kimbox's layout. Raises ImageError if one cannot be read.

    `on_part` is called with the mount point of each file system before it is compared.
    """
    on_part("/")
    old, new = former.root.file_system, disk.root.file_system
    versions = _different_versions(_versions(old), _versions(new))
    of_packages = dpkg.files_of(old, versions) | dpkg.files_of(new, versions)
    parts = [_compare(old, new, b"")]
    on_part("/boot")
    parts.append(_compare(former.boot.file_system, disk.boot.file_system, b"/boot"))
    paths = [set.union(*sets) for sets in zip(*parts, strict=True)]
    count = sum(merged_path(path) in of_packages for changed in paths for path in changed)

    def listed(changed: set[bytes]) -> tuple[str, ...]:
        own = (path for path in changed if merged_path(path) not in of_packages)
        return tuple(sorted(shown(path) for path in own if not path.startswith(dpkg.FOLDER + b"/")))

    added, removed, changed = map(listed, paths)
    return Changes(versions, added, removed, changed, count)


def _different_versions(old: dict[str, str], new: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Returns the packages whose versions differ, with both versions."""
    both = {name: (old.get(name, ""), new.get(name, "")) for name in sorted({*old, *new})}
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def _compare(old: FileSystem, new: FileSystem, prefix: bytes) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """Returns the paths that were added, removed and changed, each with `prefix` before it.

    A folder is changed only if its permissions or its owner changed.
    """
    before, after = trees.numbers(old), trees.numbers(new)
    pairs = {path: (before[path], after[path]) for path in before.keys() & after.keys()}
    differs: dict[tuple[int, int], bool] = {}  # a file with several names is compared once
    for pair in pairs.values():
        if pair not in differs:
            differs[pair] = _differs(old, inodes.inode_of(old, pair[0]), new, inodes.inode_of(new, pair[1]))
    changed = {path for path, pair in pairs.items() if differs[pair]}
    added, removed = after.keys() - before.keys(), before.keys() - after.keys()
    return {prefix + path for path in added}, {prefix + path for path in removed}, {prefix + path for path in changed}


def _differs(old_system: FileSystem, old: Inode, new_system: FileSystem, new: Inode) -> bool:
    if (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid):
        return True
    if old.is_file and old.size_bytes == new.size_bytes > MAX_COMPARED_BYTES:
        return old.modified_s != new.modified_s
    return not trees.is_same_content(old_system, old, new_system, new)


def _versions(system: FileSystem) -> dict[str, str]:
    """Returns the version of each installed package."""
    return {name: version for name, (version, _) in dpkg.installed(system).items()}
