"""Reads dpkg's database in a root file system: installed packages, their files and the digests of the files. Pure.

A guest may have written every byte. Therefore sizes are limited, and entries that do not parse are left out.
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

#: How the status of an installed package ends.
INSTALLED = (" installed", " triggers-awaited", " triggers-pending")

#: Maximum sizes, in bytes: of the status file, of all lists of files together, of all lists of digests together.
MAX_STATUS_BYTES = 64 << 20
MAX_LISTS_BYTES = 256 << 20
MAX_DIGESTS_BYTES = 256 << 20

#: Folders that have two names if /usr is merged. A list of files may have either name.
MERGED = re.compile(rb"^/(bin|sbin|lib|lib64)/")

_FIELDS = re.compile(r"^(Package|Status|Architecture|Version): (.*)$", re.MULTILINE)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")


def installed(system: FileSystem) -> dict[str, tuple[str, str]]:
    """Returns version and architecture of each installed package, by its name. Without dpkg, the result is empty.

    Raises ImageError if the status file is too large or the file system is damaged.
    """
    status = _status(system)
    if status is None:
        raise _too_large("the size of dpkg's status file", FOLDER + b"/status", MAX_STATUS_BYTES)
    packages = {}
    for block in status.decode(errors="replace").split("\n\n"):
        fields = dict(_FIELDS.findall(block))
        if fields.get("Status", "").endswith(INSTALLED) and "Package" in fields:
            packages[fields["Package"]] = fields.get("Version", ""), fields.get("Architecture", "")
    return packages


def files_of(system: FileSystem, packages: Iterable[str]) -> set[bytes]:
    """Returns every path in the lists of files of these packages, as `merged_path` returns it.

    Raises ImageError if the lists are too large or the file system is damaged.
    """
    names = [name for name in packages if _PACKAGE.fullmatch(name)]
    lists = {f"{name}{suffix}.list".encode() for name in names for suffix in ("", ":amd64")}
    paths: set[bytes] = set()
    for _, data in _info(system, lambda name: name in lists, MAX_LISTS_BYTES):
        paths.update(merged_path(line) for line in data.split(b"\n") if line)
    return paths


def digests(system: FileSystem, paths: set[bytes]) -> dict[bytes, tuple[str, str]]:
    """Returns the MD5 hex digest and the package of each of these paths that a package has as a file or conffile.

    The paths are as `merged_path` returns them. Raises ImageError if the lists are too large.
    """
    digest_of: dict[bytes, tuple[str, str]] = {}
    for name, data in _info(system, lambda name: name.endswith(b".md5sums"), MAX_DIGESTS_BYTES):
        package = shown(name.removesuffix(b".md5sums")).partition(":")[0]
        for line in data.split(b"\n"):
            path = merged_path(b"/" + line[34:])
            if path in paths:
                digest_of[path] = line[:32].decode("ascii", "replace"), package
    return digest_of | _conffiles(system, paths)


def merged_path(path: bytes) -> bytes:
    """Returns the path as it is in a merged /usr: /bin/x becomes /usr/bin/x."""
    return MERGED.sub(rb"/usr/\1/", path)


def _conffiles(system: FileSystem, paths: set[bytes]) -> dict[bytes, tuple[str, str]]:
    """Returns the same as `digests`, for the configuration files that the status file lists."""
    digest_of: dict[bytes, tuple[str, str]] = {}
    package = ""
    for line in (_status(system) or b"").split(b"\n"):
        if line.startswith(b"Package: "):
            package = shown(line[9:])
        elif line.startswith(b" /"):
            fields = line[1:].split(b" ")
            if len(fields) >= 2 and merged_path(fields[0]) in paths:
                digest_of[merged_path(fields[0])] = fields[1].decode("ascii", "replace"), package
    return digest_of


def _status(system: FileSystem) -> bytes | None:
    """Returns the content of the status file: empty if it does not exist, None if it is too large."""
    entry = directories.find(system, FOLDER + b"/status")
    if entry is None or not entry.inode.is_file:
        return b""
    return ext4data.content(system, entry.inode, MAX_STATUS_BYTES)


def _info(system: FileSystem, matches: Callable[[bytes], bool], max_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields name and content of each file of the info folder whose name matches.

    Raises ImageError if all of them together are larger than `max_bytes`.
    """
    folder = directories.find(system, FOLDER + b"/info")
    remaining_bytes = max_bytes
    for entry in directories.listed(system, folder) if folder else ():
        if not entry.inode.is_file or not matches(entry.name):
            continue
        data = ext4data.content(system, entry.inode, remaining_bytes)
        if data is None:
            raise _too_large("the total size of dpkg's lists", FOLDER + b"/info", max_bytes)
        remaining_bytes -= len(data)
        yield entry.name, data


def _too_large(what: str, path: bytes, max_bytes: int) -> ImageError:
    return ImageError(
        f"{what} on the disk exceeds the limit of {max_bytes >> 20} MiB",
        code="file-too-large",
        fields={"path": shown(path)},
    )
