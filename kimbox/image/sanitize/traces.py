"""Finds the files of a root file system that belong to one machine: identity, keys, logs, caches. Reads only.

The file system is not mounted. A guest chose the names: they are bytes, and no command contains one.
"""

from __future__ import annotations

import re
from itertools import islice

from kimbox.errors import ImageError
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.inputs import identity

#: Folders whose content is removed.
EMPTIED = (
    "/tmp", "/var/tmp",  # noqa: S108 - of the guest
    "/var/crash", "/var/lib/kimbox", "/var/lib/systemd/coredump", "/var/lib/systemd/timers",
    *(f"{home}/{name}" for home in ("/root", "/home/*") for name in (".cache", ".gnupg", ".ssh")),
)  # fmt: skip

#: Folders whose files are removed, at any depth. Subfolders stay, because programs expect them (but see JOURNAL).
LOG_FOLDERS = ("/var/log", "/var/cache/apt", "/var/lib/apt/lists", "/var/lib/dhcp")

#: The folder of journald. It has a subfolder for each machine, whose name is the id of the machine.
JOURNAL = "/var/log/journal"
_MACHINE_ID = re.compile(rb"[0-9a-f]{32}(\.[A-Za-z0-9_-]{1,64})?")

#: Files that are removed.
REMOVED = (
    "/etc/ssh/ssh_host_*", "/etc/kimbox/box.*", "/etc/resolv.conf", "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/cache/ldconfig/aux-cache",
    *(f"{home}/{name}" for home in ("/root", "/home/*") for name in (
        ".bash_history", ".python_history", ".lesshst", ".viminfo", ".wget-hsts", ".sudo_as_admin_successful",
        ".netrc", ".git-credentials", ".docker/config.json", ".aws/credentials",
    )),
)  # fmt: skip

#: Files of /etc that get the content of the image if they differ from it, with their modes.
AS_BUILT = {"machine-id": 0o100444, "hostname": 0o100644, "hosts": 0o100644}

#: Maximum size of such a file that is compared, in bytes. A larger one counts as different.
AS_BUILT_BYTES = 64 << 10

#: Maximum size of a file in LOG_FOLDERS that is compared with the image, in bytes. It stays if it is equal. A larger
#: file is removed without a comparison.
COMPARED_BYTES = 1 << 20

#: Maximum number of entries of a folder that is emptied. A larger tree is hardly a trace of one machine.
MAX_ENTRIES = 200_000


def machine_entries(system: FileSystem, built: FileSystem | None) -> list[Entry]:
    """Entries that belong to one machine, each once.

    `built` is the root of the image, or None if a machine may have run in the image. Without it, links and files that
    hold only zeros in LOG_FOLDERS are taken as part of the image. Raises ImageError for a folder with more than
    MAX_ENTRIES.
    """
    entries: list[Entry] = []
    for pattern in EMPTIED:
        for folder in directories.matching(system, pattern):
            entries += tree(system, folder)
    for path in LOG_FOLDERS:
        files = (e for e in tree(system, directories.find(system, path.encode())) if not e.inode.is_folder)
        if built is None:
            entries += [e for e in files if not e.inode.is_link and not _is_blank(system, e)]
        else:
            built_entries = {e.path: e for e in tree(built, directories.find(built, path.encode()))}
            entries += [e for e in files if not _is_as_built(system, e, built, built_entries.get(e.path))]
    entries += _journals(system, built)
    for pattern in REMOVED:
        entries += [entry for entry in directories.matching(system, pattern) if not entry.inode.is_folder]
    for maker in identity.makers():
        for pattern in maker.removes:
            entries += _with_links(system, pattern)
    return list({entry.path: entry for entry in entries}.values())


def _journals(system: FileSystem, built: FileSystem | None) -> list[Entry]:
    """The folders of journald that the image does not have, with their content. Their names are ids of machines."""
    folder = directories.find(system, JOURNAL.encode())
    if folder is None or not folder.inode.is_folder:
        return []
    old = directories.find(built, JOURNAL.encode()) if built else None
    kept = {entry.name for entry in directories.listed(built, old)} if built and old and old.inode.is_folder else set()
    names = [e for e in directories.listed(system, folder) if e.inode.is_folder and _MACHINE_ID.fullmatch(e.name)]
    return [part for entry in names if entry.name not in kept for part in (entry, *tree(system, entry))]


def _is_blank(system: FileSystem, entry: Entry) -> bool:
    """Whether a regular file holds only zeros, like the login records of a new system."""
    if not entry.inode.is_file:
        return False
    for _, count, start in ext4data.runs(system, entry.inode):
        for number in range(start, start + count):
            if any(system.read(number * system.block_bytes, system.block_bytes)):
                return False
    return True


def _with_links(system: FileSystem, pattern: str) -> list[Entry]:
    """Files that match a pattern, and the links to them in the same folder: OpenSSL finds a certificate by a link."""
    entries = [entry for entry in directories.matching(system, pattern) if not entry.inode.is_folder]
    targets = {entry.name for entry in entries}
    for folder in directories.matching(system, pattern.rpartition("/")[0]) if entries else ():
        links = [entry for entry in directories.listed(system, folder) if entry.inode.is_link]
        entries += [entry for entry in links if ext4data.link_target(system, entry.inode) in targets]
    return entries


def tree(system: FileSystem, folder: Entry | None) -> list[Entry]:
    """All entries below a folder; an empty list for None, a file or a link.

    Raises ImageError if the folder has more than MAX_ENTRIES.
    """
    if folder is None or not folder.inode.is_folder:
        return []
    entries = list(islice(directories.walk(system, folder), MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        path = shown(folder.path)
        raise ImageError(
            f"{path} in the root has more than {MAX_ENTRIES} files",
            code="too-complex",
            hint="remove files that are not needed, in the box",
            fields={"path": path},
        )
    return entries


def _is_as_built(system: FileSystem, entry: Entry, built: FileSystem, built_entry: Entry | None) -> bool:
    """Whether a file equals that of the image in kind, mode, owner and content. `built_entry` is its entry there."""
    if built_entry is None:
        return False
    new, old = entry.inode, built_entry.inode
    if (new.mode, new.uid, new.gid, new.size_bytes) != (old.mode, old.uid, old.gid, old.size_bytes):
        return False
    if new.is_file:
        data = ext4data.content(system, new, COMPARED_BYTES)
        return data is not None and data == ext4data.content(built, old, COMPARED_BYTES)
    return not new.is_link or ext4data.link_target(system, new) == ext4data.link_target(built, old)


def changed_files(system: FileSystem, built: FileSystem) -> tuple[dict[str, bytes], list[Entry]]:
    """Files of AS_BUILT that differ from the image: the content to write by name, and the entries to remove.

    An entry is removed if another one takes its place, or if the image has no such file. Raises ImageError if a file
    differs, and the image has a folder, a link or a large file in its place.
    """
    reset: dict[str, bytes] = {}
    removed: list[Entry] = []
    for name in AS_BUILT:
        path = f"/etc/{name}".encode()
        entry, built_entry = directories.find(system, path), directories.find(built, path)
        if built_entry is not None:
            if entry is not None and _is_same(system, entry, built, built_entry):
                continue
            inode = built_entry.inode
            data = ext4data.content(built, inode, AS_BUILT_BYTES) if inode.is_file else None
            if data is None:
                raise ImageError(
                    f"/etc/{name} of the machine differs from its image, and in the image it is not a file of at most "
                    f"{AS_BUILT_BYTES >> 10} KiB that kimbox could restore",
                    code="file-too-large" if inode.is_file else "not-a-regular-file",
                    fields={"path": f"/etc/{name}"},
                )
            reset[name] = data
        if entry is not None:
            removed += [entry, *tree(system, entry)]
    return reset, removed


def _is_same(system: FileSystem, entry: Entry, built: FileSystem, built_entry: Entry) -> bool:
    """Whether both are files with the same content, or links with the same target."""
    if entry.inode.is_link and built_entry.inode.is_link:
        return ext4data.link_target(system, entry.inode) == ext4data.link_target(built, built_entry.inode)
    if not entry.inode.is_file or not built_entry.inode.is_file:
        return False
    data = ext4data.content(system, entry.inode, AS_BUILT_BYTES)
    return data is not None and data == ext4data.content(built, built_entry.inode, AS_BUILT_BYTES)
