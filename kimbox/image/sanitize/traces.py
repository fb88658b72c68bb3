"""What belongs to one machine in the root file system of a box: found in file systems that nobody mounts. Pure.

A guest chose the names: they are bytes, and no command of any program holds one.
"""

from __future__ import annotations

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

#: Folders whose files are removed, at any depth; programs expect the folders themselves.
FILES_GO = ("/var/log", "/var/cache/apt", "/var/lib/apt/lists", "/var/lib/dhcp")

#: Files that are removed.
GONE = (
    "/etc/ssh/ssh_host_*", "/etc/kimbox/box.*", "/etc/resolv.conf", "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/cache/ldconfig/aux-cache",
    *(f"{home}/{name}" for home in ("/root", "/home/*") for name in (
        ".bash_history", ".python_history", ".lesshst", ".viminfo", ".wget-hsts", ".sudo_as_admin_successful",
        ".netrc", ".git-credentials", ".docker/config.json", ".aws/credentials",
    )),
)  # fmt: skip

#: Files of /etc that get the image's content again, where they have another, with their modes. A larger one is another.
AS_BUILT = {"machine-id": 0o100444, "hostname": 0o100644, "hosts": 0o100644}
AS_BUILT_BYTES = 64 << 10

#: A file in FILES_GO that the image has, too, stays if it is the same. A larger file is removed without a comparison.
SAME_BYTES = 1 << 20

#: Maximum number of entries of a folder that is emptied: a larger tree is not a leftover.
MAX_ENTRIES = 200_000


def find(system: FileSystem, built: FileSystem | None) -> list[Entry]:
    """Entries that belong to one machine. `built` is the root of the image; None if that may have run, too.

    Without it, links and files of nothing but zeros in the folders of logs and caches count as the image's.
    """
    found: list[Entry] = []
    for pattern in EMPTIED:
        for folder in directories.matching(system, pattern):
            found += tree(system, folder)
    for path in FILES_GO:
        files = (e for e in tree(system, directories.find(system, path.encode())) if not e.inode.is_folder)
        if built is None:
            found += [e for e in files if not e.inode.is_link and not _is_blank(system, e)]
        else:
            was = {e.path: e for e in tree(built, directories.find(built, path.encode()))}
            found += [e for e in files if not _is_as_built(system, e, built, was.get(e.path))]
    for pattern in GONE:
        found += [entry for entry in directories.matching(system, pattern) if not entry.inode.is_folder]
    for maker in identity.makers():
        for pattern in maker.removes:
            found += _with_links(system, pattern)
    return list({entry.path: entry for entry in found}.values())


def _is_blank(system: FileSystem, entry: Entry) -> bool:
    """Whether a file holds only zeros, like the records of logins in a new system."""
    if not entry.inode.is_file:
        return False
    for _, count, start in ext4data.runs(system, entry.inode):
        for number in range(start, start + count):
            if any(system.read(number * system.block_bytes, system.block_bytes)):
                return False
    return True


def _with_links(system: FileSystem, pattern: str) -> list[Entry]:
    """Files that match a pattern, and links to them in the same folder: OpenSSL finds a certificate by one."""
    found = [entry for entry in directories.matching(system, pattern) if not entry.inode.is_folder]
    targets = {entry.name for entry in found}
    for folder in directories.matching(system, pattern.rpartition("/")[0]) if found else ():
        links = [entry for entry in directories.listed(system, folder) if entry.inode.is_link]
        found += [entry for entry in links if ext4data.link_target(system, entry.inode) in targets]
    return found


def tree(system: FileSystem, folder: Entry | None) -> list[Entry]:
    """All entries below a folder; empty if it is not a folder: links are not followed."""
    if folder is None or not folder.inode.is_folder:
        return []
    found = list(islice(directories.walk(system, folder), MAX_ENTRIES + 1))
    if len(found) > MAX_ENTRIES:
        hint = "remove what is not needed in the box"
        raise ImageError(f"{shown(folder.path)} of the root holds more than {MAX_ENTRIES} files", hint=hint)
    return found


def _is_as_built(system: FileSystem, entry: Entry, built: FileSystem, was: Entry | None) -> bool:
    """Whether the image has a file of the same name, kind, owner and content; `was` is its entry there."""
    if was is None:
        return False
    new, old = entry.inode, was.inode
    if (new.mode, new.uid, new.gid, new.size_bytes) != (old.mode, old.uid, old.gid, old.size_bytes):
        return False
    if new.is_file:
        data = ext4data.content(system, new, SAME_BYTES)
        return data is not None and data == ext4data.content(built, old, SAME_BYTES)
    return not new.is_link or ext4data.link_target(system, new) == ext4data.link_target(built, old)


def differing(system: FileSystem, built: FileSystem) -> tuple[dict[str, bytes], list[Entry]]:
    """Files of AS_BUILT to be written, with the image's content, and what has to go for that or is not in the image.

    Raises ImageError where the image has something else than a small file, and the machine another thing.
    """
    reset: dict[str, bytes] = {}
    gone: list[Entry] = []
    for name in AS_BUILT:
        path = f"/etc/{name}".encode()
        entry, was = directories.find(system, path), directories.find(built, path)
        if was is not None:
            if entry is not None and _is_same(system, entry, built, was):
                continue
            data = ext4data.content(built, was.inode, AS_BUILT_BYTES) if was.inode.is_file else None
            if data is None:
                raise ImageError(f"/etc/{name} of the image is no small file, and the machine has another")
            reset[name] = data
        if entry is not None:
            gone += [entry, *tree(system, entry)]
    return reset, gone


def _is_same(system: FileSystem, entry: Entry, built: FileSystem, was: Entry) -> bool:
    """Whether both are files of the same content, or links of the same target."""
    if entry.inode.is_link and was.inode.is_link:
        return ext4data.link_target(system, entry.inode) == ext4data.link_target(built, was.inode)
    if not entry.inode.is_file or not was.inode.is_file:
        return False
    data = ext4data.content(system, entry.inode, AS_BUILT_BYTES)
    return data is not None and data == ext4data.content(built, was.inode, AS_BUILT_BYTES)
