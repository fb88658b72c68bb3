"""Removes the traces of a run from a disk of kimbox's layout whose image is not known: a box that came from elsewhere.

What a built image holds is known by kimbox itself: a root with no identity, `runsetup` and `runsecure` alone on
/persistent, an empty snapshot, zeros wherever nothing is in use.
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
from kimbox.image.sanitize import apply, secrets
from kimbox.image.sanitize import traces as of_machine

#: What a built image has on /persistent.
BUILT = (b"runsetup", b"runsecure")

#: Files of /etc as the provisioner `base` writes them; and `hosts` as the guest writes it with a name from its host.
NO_NAME = b"kimbox"
HOSTS = b"127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n"
_NAMED = re.compile(rb"127\.0\.0\.1 localhost\n127\.0\.1\.1 [^\n]{0,300}\n::1 localhost ip6-localhost\n")


def traces(disk: DiskView) -> list[str]:
    """What a disk has of a machine that ran, as paths or in words; nothing where it is as built.

    Raises ImageError where it cannot be looked into, or has another layout.
    """
    there = disk.contents
    systems = {name: volume.file_system for name, volume in there.mounted.items()}
    found = [f"{name or '/'} was not unmounted" for name, system in systems.items() if _is_open(system)]
    gone, reset = _of_root(systems[ROOT])
    found += [shown(entry.path) for entry in gone] + [f"/etc/{name}" for name in reset]
    found += [f"/persistent{shown(entry.path)}" for entry in _of_persistent(systems[PERSISTENT])]
    if any(there.store.read(0, 16)):
        found.append("the snapshot of root")
    if _is_boot_mode_set(disk):
        found.append("the boot mode")
    if _has_remains(disk):
        found.append("what is not in use any more")
    return sorted(set(found))


def clean(path: Path) -> list[str]:
    """Removes these traces from a raw disk. Returns what was removed or reset, as `traces` names it.

    Raises ImageError where it cannot be looked into or is damaged.
    """
    with rawdisk.writable(path) as disk:
        before = disk.view()
        check_layout(before)
        for name in (BOOT, ROOT, PERSISTENT):
            apply.repair(disk, before.contents.mounted[name], name or "root")  # replays journals: only then ...
        now = before.reopened()  # ... the rest can be seen
        mounted = now.contents.mounted
        found = traces(now)
        gone, reset = _of_root(mounted[ROOT].file_system)
        persistent = _with_content(mounted[PERSISTENT].file_system)
        if _is_boot_mode_set(now):
            disk.write(grubenv.place(mounted[BOOT]), grubenv.EMPTY)
        apply.change_root(disk, mounted[ROOT], gone, reset)
        apply.remove(disk, mounted[PERSISTENT], persistent)
        for name in (ROOT, PERSISTENT):
            apply.repair(disk, mounted[name], name or "root")
        apply.drop_unused(disk, now.reopened())
    return found


def check_layout(disk: DiskView) -> None:
    """Raises ImageError for a disk that holds what a built one does not, and that kimbox cannot clean."""
    there = disk.contents
    if there.unknown:
        raise ImageError(f"its volume {there.unknown[0].name:.40} holds what kimbox cannot read")
    if PERSISTENT not in there.mounted:
        raise ImageError("it has no volume with the label of /persistent")
    if len(there.mounted[PERSISTENT].pieces) != 1:
        raise ImageError("its volume for /persistent lies in several pieces")


def _is_open(system: FileSystem) -> bool:
    """Whether it was not unmounted."""
    return bool(system.superblock.incompat & RECOVER)


def _of_root(system: FileSystem) -> tuple[list[Entry], dict[str, bytes]]:
    """What is to be removed, and files of /etc with their new content; they are removed, too."""
    gone, reset = of_machine.find(system, None), {}
    for name, new, is_own in (
        ("machine-id", b"", bool),
        ("hostname", NO_NAME + b"\n", lambda data: data != NO_NAME + b"\n"),
        ("hosts", HOSTS % NO_NAME, lambda data: data != HOSTS % NO_NAME and _NAMED.fullmatch(data)),
    ):
        entry = directories.find(system, f"/etc/{name}".encode())
        if entry is None or not entry.inode.is_file:
            continue
        data = ext4data.content(system, entry.inode, of_machine.AS_BUILT_BYTES)
        if data is None or is_own(data):
            gone.append(entry)
            reset[name] = new
    return gone, reset


def _of_persistent(system: FileSystem) -> Iterator[Entry]:
    """What a built image has not there, at the top; of lost+found what is in it."""
    for entry in directories.listed(system, directories.top(system)):
        if entry.name == b"lost+found" and entry.inode.is_folder:
            yield from directories.listed(system, entry)
        elif entry.name not in BUILT or not entry.inode.is_file:
            yield entry


def _with_content(system: FileSystem) -> list[Entry]:
    return [one for entry in _of_persistent(system) for one in (entry, *of_machine.tree(system, entry))]


def _is_boot_mode_set(disk: DiskView) -> bool:
    """Whether GRUB's environment chooses another entry than the usual one."""
    block = disk.read(grubenv.place(disk.boot), grubenv.BLOCK_BYTES)
    usual = (b"saved_entry=keep", b"saved_entry=", b"next_entry=")
    lines = (line for line in block.split(b"\n") if line.startswith((b"saved_entry=", b"next_entry=")))
    return any(line not in usual for line in lines)


def _has_remains(disk: DiskView) -> bool:
    """Whether anything but zeros is where nothing is in use: deleted files, swapped pages, old metadata."""
    unused = ranges.without([(0, disk.size_bytes)], inuse.find(disk).used)
    for start, end in ranges.common(unused, disk.written()):
        for at in range(start, end, secrets.PIECE_BYTES):
            piece = disk.read(at, min(secrets.PIECE_BYTES, end - at))
            if piece.count(0) != len(piece):
                return True
    return False
