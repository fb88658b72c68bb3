"""Finds the files in /boot that a machine's snapshot left: kernels that fit the snapshot alone. Reads only.

A clean disk has an empty snapshot, so only the kernels of the real root can start. The guest manages these files
(provisioners/boot/root/usr/lib/kimbox/link-kernel). A guest chose the names: they are bytes.
"""

from __future__ import annotations

import re

from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import Entry
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.sanitize.traces import tree

#: The link to the kernel of the real root, and the link to the kernel of the snapshot. Without the latter, the guest
#: starts the kernel of the real root and creates the link again.
OF_ROOT, OF_SNAPSHOT = b"linux", b"linux.keep"

#: Names that an interrupted change of the links leaves.
UNFINISHED = frozenset({b"linux.new", b"linux.old", b"linux.keep.new", b"linux.keep.old", b"linux.file"})

#: Folders of the modules of all kernels.
MODULES = (b"/usr/lib/modules", b"/lib/modules")

#: A folder with the files of a kernel, and a file of a kernel in /boot. The group is the version.
_FOLDER = re.compile(rb"linux-([^/]{1,200})\.[0-9]{1,2}")
_FILE = re.compile(rb"(vmlinuz|initrd\.img|System\.map|config)-([^/]{1,240})")


def left_entries(boot: FileSystem, root: FileSystem) -> list[Entry]:
    """Entries of /boot that the real root does not need. The list is empty if /boot is not as kimbox builds it."""
    top = {entry.name: entry for entry in directories.listed(boot, directories.top(boot))}
    link = top.get(OF_ROOT)
    target = ext4data.link_target(boot, link.inode) if link is not None and link.inode.is_link else b""
    used = top.get(target)
    match = _FOLDER.fullmatch(target)
    if used is None or match is None or not used.inode.is_folder:
        return []
    kernel = {entry.name: entry.inode.number for entry in directories.listed(boot, used)}
    versions = {e.name for path in MODULES for e in _listed(root, path) if e.inode.is_folder}
    if match[1] not in versions:
        return []
    removed = []
    for name, entry in top.items():
        if name in UNFINISHED:
            removed.append(entry)
        elif entry.inode.is_folder and name != target and _FOLDER.fullmatch(name):
            removed += [entry, *tree(boot, entry)]
        elif entry.inode.is_file and (file := _FILE.fullmatch(name)) and not name.endswith(b".bak"):
            kind, version = file.groups()
            is_changed = version == match[1] and entry.inode.number != kernel.get(kind)
            if version not in versions or is_changed:
                removed.append(entry)
    keep = top.get(OF_SNAPSHOT)
    if keep is not None and keep.inode.is_link:
        is_same = ext4data.link_target(boot, keep.inode) == target
        # Without this link, the guest gives the files of the kernel their names again.
        if removed or not is_same:
            removed.append(keep)
    return removed


def _listed(system: FileSystem, path: bytes) -> list[Entry]:
    """The entries of a folder; empty if there is none."""
    folder = directories.find(system, path)
    return [] if folder is None else list(directories.listed(system, folder))
