"""Detects and removes traces of a run on a disk that kimbox did not build: a box from elsewhere, in kimbox's layout.

There is no image to compare such a disk with. kimbox compares it with the properties of every image that it builds: a
root without an identity, only `runsetup` and `runsecure` on /persistent, an empty snapshot, and zeros in unused space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kimbox.errors import ImageError
from kimbox.image.disk import grubenv, inuse, ranges, rawdisk
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.ext4.superblock import RECOVER
from kimbox.image.disk.view import BOOT, PERSISTENT, ROOT, DiskView
from kimbox.image.sanitize import apply, kernels, secrets
from kimbox.image.sanitize.traces import AS_BUILT_BYTES, machine_entries, tree

#: Files on /persistent of an image that kimbox built.
BUILT = (b"runsetup", b"runsecure")

#: Host name and /etc/hosts as the provisioner `base` writes them. `_NAMED` is /etc/hosts as the guest writes it with
#: the host name that it got from its host.
NO_NAME = b"kimbox"
HOSTS = b"127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n"
_NAMED = re.compile(rb"127\.0\.0\.1 localhost\n127\.0\.1\.1 [^\n]{0,300}\n::1 localhost ip6-localhost\n")


def traces(disk: DiskView) -> list[str]:
    """Returns the traces of a machine that ran, as paths and phrases. The list is empty if the disk is as built.

    Raises ImageError if the disk cannot be read or has another layout.
    """
    contents = disk.contents
    systems = {name: volume.file_system for name, volume in contents.mounted.items()}
    names = [f"{name or '/'} was not unmounted" for name, system in systems.items() if _is_open(system)]
    removed, reset = _root_traces(systems[ROOT])
    names += [shown(entry.path) for entry in removed] + [f"/etc/{name}" for name in reset]
    names += [f"/persistent{shown(entry.path)}" for entry in _persistent_traces(systems[PERSISTENT])]
    names += [f"/boot{shown(entry.path)}" for entry in kernels.left_entries(systems[BOOT], systems[ROOT])]
    if any(contents.store.read(0, 16)):
        names.append("the snapshot of root")
    if _is_boot_mode_set(disk):
        names.append("the boot mode")
    if _has_unused_data(disk):
        names.append("data in unused space")
    return sorted(set(names))


def clean(path: Path) -> list[str]:
    """Removes the traces of a run from a raw disk. Returns what was removed or reset, as `traces` does.

    Raises ImageError if the disk cannot be read or is damaged.
    """
    with rawdisk.writable(path) as disk:
        before = disk.view()
        check_layout(before)
        # Files are complete only after their journal is replayed, so repair comes before the search for traces.
        for name in (BOOT, ROOT, PERSISTENT):
            apply.repair(disk, before.contents.mounted[name], name or "root")
        repaired = before.reopened()
        mounted = repaired.contents.mounted
        removed_names = traces(repaired)
        removed, reset = _root_traces(mounted[ROOT].file_system)
        persistent = _persistent_trees(mounted[PERSISTENT].file_system)
        boot = kernels.left_entries(mounted[BOOT].file_system, mounted[ROOT].file_system)
        if _is_boot_mode_set(repaired):
            disk.write(grubenv.place(mounted[BOOT]), grubenv.EMPTY)
        apply.change_root(disk, mounted[ROOT], removed, reset)
        apply.remove(disk, mounted[PERSISTENT], persistent)
        apply.remove(disk, mounted[BOOT], boot)
        for name in (BOOT, ROOT, PERSISTENT):
            apply.repair(disk, mounted[name], name or "root")
        apply.drop_unused(disk, repaired.reopened())
    return removed_names


def check_layout(disk: DiskView) -> None:
    """Raises ImageError if a disk has a volume that kimbox cannot clean, or root or /persistent not in one piece."""
    contents = disk.contents
    if len(disk.root.pieces) != 1:
        raise ImageError("its root is in several pieces", code="disk-layout", fields={"fault": "root-in-pieces"})
    if contents.unknown:
        name = f"{contents.unknown[0].name:.40}"
        raise ImageError(
            f"its volume {name} has content that kimbox cannot read",
            code="disk-layout",
            fields={"fault": "unknown-content", "volume": name},
        )
    if PERSISTENT not in contents.mounted:
        raise ImageError(
            "it has no volume with the label of /persistent",
            code="disk-layout",
            fields={"fault": "no-persistent"},
        )
    if len(contents.mounted[PERSISTENT].pieces) != 1:
        raise ImageError(
            "its volume for /persistent is in several pieces",
            code="disk-layout",
            fields={"fault": "persistent-in-pieces"},
        )


def _is_open(system: FileSystem) -> bool:
    """Whether a file system was not unmounted."""
    return bool(system.superblock.incompat & RECOVER)


def _root_traces(system: FileSystem) -> tuple[list[Entry], dict[str, bytes]]:
    """The entries to remove, and the files of /etc to write, with their content. The former include the latter."""
    removed, reset = machine_entries(system, None), {}
    for name, new, is_changed in (
        ("machine-id", b"", bool),
        ("hostname", NO_NAME + b"\n", lambda data: data != NO_NAME + b"\n"),
        ("hosts", HOSTS % NO_NAME, lambda data: data != HOSTS % NO_NAME and _NAMED.fullmatch(data)),
    ):
        entry = directories.find(system, f"/etc/{name}".encode())
        if entry is None or not entry.inode.is_file:
            continue
        data = ext4data.content(system, entry.inode, AS_BUILT_BYTES)
        if data is None or is_changed(data):
            removed.append(entry)
            reset[name] = new
    return removed, reset


def _persistent_traces(system: FileSystem) -> Iterator[Entry]:
    """Entries at the top of /persistent that a built image does not have, and the entries of lost+found."""
    for entry in directories.listed(system, directories.top(system)):
        if entry.name == b"lost+found" and entry.inode.is_folder:
            yield from directories.listed(system, entry)
        elif entry.name not in BUILT or not entry.inode.is_file:
            yield entry


def _persistent_trees(system: FileSystem) -> list[Entry]:
    """The traces on /persistent, with all entries below them."""
    return [entry for top in _persistent_traces(system) for entry in (top, *tree(system, top))]


def _is_boot_mode_set(disk: DiskView) -> bool:
    """Whether GRUB's environment selects another boot entry than the default one."""
    block = disk.read(grubenv.place(disk.boot), grubenv.BLOCK_BYTES)
    default = (b"saved_entry=keep", b"saved_entry=", b"next_entry=")
    lines = (line for line in block.split(b"\n") if line.startswith((b"saved_entry=", b"next_entry=")))
    return any(line not in default for line in lines)


def _has_unused_data(disk: DiskView) -> bool:
    """Whether unused space holds data: deleted files, swapped pages, old metadata."""
    unused = ranges.without([(0, disk.size_bytes)], inuse.find(disk).used)
    for start, end in ranges.common(unused, disk.written()):
        for at in range(start, end, secrets.PIECE_BYTES):
            piece = disk.read(at, min(secrets.PIECE_BYTES, end - at))
            if piece.count(0) != len(piece):
                return True
    return False
