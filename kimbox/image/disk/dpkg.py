"""Reads dpkg's database in a root file system: installed packages, their files, the digests of these. Pure.

A guest may have written every byte: sizes are limited, and what does not parse is left out.
Format: dpkg-query(1), deb-md5sums(5), deb-conffiles(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from kimbox.errors import ImageError
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.disk.ext4.inodes import FileSystem

#: Folder of the database.
FOLDER = b"/var/lib/dpkg"

#: Ends of the status of a package that is installed.
INSTALLED = (" installed", " triggers-awaited", " triggers-pending")

#: Maximum size of the status file; of all lists of files together; of all lists of digests together.
MAX_STATUS_BYTES = 64 << 20
MAX_LISTS_BYTES = 256 << 20
MAX_DIGESTS_BYTES = 256 << 20

#: Folders that a merged /usr has under two names; a list of files may have either.
MERGED = re.compile(rb"^/(bin|sbin|lib|lib64)/")

_FIELDS = re.compile(r"^(Package|Status|Architecture|Version): (.*)$", re.MULTILINE)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")


def installed(system: FileSystem) -> dict[str, tuple[str, str]]:
    """Version and architecture of each installed package, by its name; empty without dpkg. Raises ImageError."""
    status = _status(system)
    if status is None:
        raise ImageError(f"dpkg's status on the disk is larger than {MAX_STATUS_BYTES >> 20} MiB")
    packages = {}
    for block in status.decode(errors="replace").split("\n\n"):
        fields = dict(_FIELDS.findall(block))
        if fields.get("Status", "").endswith(INSTALLED) and "Package" in fields:
            packages[fields["Package"]] = fields.get("Version", ""), fields.get("Architecture", "")
    return packages


def files_of(system: FileSystem, packages: Iterable[str]) -> set[bytes]:
    """Every path in the lists of files of these packages, as `merged_path` gives it. Raises ImageError."""
    names = [name for name in packages if _PACKAGE.fullmatch(name)]
    lists = {f"{name}{suffix}.list".encode() for name in names for suffix in ("", ":amd64")}
    paths: set[bytes] = set()
    for _, data in _info(system, lambda name: name in lists, MAX_LISTS_BYTES):
        paths.update(merged_path(line) for line in data.split(b"\n") if line)
    return paths


def digests(system: FileSystem, paths: set[bytes]) -> dict[bytes, tuple[str, str]]:
    """MD5 hex digest and package of these paths, which are as `merged_path` gives them: of files and of conffiles.

    Raises ImageError if the lists are too large.
    """
    found: dict[bytes, tuple[str, str]] = {}
    for name, data in _info(system, lambda name: name.endswith(b".md5sums"), MAX_DIGESTS_BYTES):
        package = shown(name.removesuffix(b".md5sums")).partition(":")[0]
        for line in data.split(b"\n"):
            path = merged_path(b"/" + line[34:])
            if path in paths:
                found[path] = line[:32].decode("ascii", "replace"), package
    return found | _conffiles(system, paths)


def merged_path(path: bytes) -> bytes:
    """A path with the name that a merged /usr gives it."""
    return MERGED.sub(rb"/usr/\1/", path)


def _conffiles(system: FileSystem, paths: set[bytes]) -> dict[bytes, tuple[str, str]]:
    """As `digests`, of the configuration files in the status file."""
    found: dict[bytes, tuple[str, str]] = {}
    package = ""
    for line in (_status(system) or b"").split(b"\n"):
        if line.startswith(b"Package: "):
            package = shown(line[9:])
        elif line.startswith(b" /"):
            fields = line[1:].split(b" ")
            if len(fields) >= 2 and merged_path(fields[0]) in paths:
                found[merged_path(fields[0])] = fields[1].decode("ascii", "replace"), package
    return found


def _status(system: FileSystem) -> bytes | None:
    """The status file: empty if there is none, None if it is too large."""
    entry = directories.find(system, FOLDER + b"/status")
    if entry is None or not entry.inode.is_file:
        return b""
    return ext4data.content(system, entry.inode, MAX_STATUS_BYTES)


def _info(system: FileSystem, is_wanted: Callable[[bytes], bool], max_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each file of the info folder whose name is wanted; `max_bytes` is for all of them."""
    folder = directories.find(system, FOLDER + b"/info")
    left = max_bytes
    for entry in directories.listed(system, folder) if folder else ():
        if not entry.inode.is_file or not is_wanted(entry.name):
            continue
        data = ext4data.content(system, entry.inode, left)
        if data is None:
            raise ImageError(f"dpkg's lists of files on the disk are larger than {max_bytes >> 20} MiB")
        left -= len(data)
        yield entry.name, data
