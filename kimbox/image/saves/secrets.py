"""Lists what looks like secrets of users on a disk that is saved. Whoever gets the save gets these files.

Names of all files are looked at, and the first bytes of those in folders in which users write. The files of packages
are the same everywhere.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

import attrs

from kimbox.errors import StateError
from kimbox.image.disk.ext4 import content, directories
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.view import PERSISTENT, DiskView
from kimbox.image.sanitize import user_secrets
from kimbox.image.saves.private import Cleaned

#: Maximum number of files that are found, and that a message lists.
MAX_FOUND, MAX_NAMED = 1000, 10

#: Files of the root whose secrets are of the machine and not in a save, or are given to each box.
OWN = (b"/etc/ssh/ssh_host_", b"/var/lib/systemd/")


@attrs.frozen(order=True)
class Finding:
    """A file, by its path in the guest, escaped by `directories.shown`, and what it seems to hold."""

    path: str
    kind: str


def find(disk: Cleaned, named: Iterable[str] = ()) -> tuple[Finding, ...]:
    """Returns the findings on a disk as a save has it, by path. Raises ImageError if the disk is damaged.

    They are the first MAX_FOUND of those that `named` has, as for `check_shared`, and as many of the others: files that
    the user has named hide no other.
    """
    view = DiskView.of(disk.read, disk.size_bytes)
    systems = [("", view.root.file_system)]
    if view.snapshot_of_root.file_system is not view.root.file_system:
        systems.append(("", view.snapshot_of_root.file_system))
    if (persistent := view.contents.mounted.get(PERSISTENT)) is not None:
        systems.append((PERSISTENT, persistent.file_system))
    known, others = set[Finding](), set[Finding]()
    for finding in (one for place, system in systems for one in _in_system(system, place)):
        if _is_named(finding, named):
            if len(known) < MAX_FOUND:
                known.add(finding)
            continue
        others.add(finding)
        if len(others) >= MAX_FOUND:
            break
    return tuple(sorted(known | others))


def _is_named(finding: Finding, named: Iterable[str]) -> bool:
    folders = (path.rstrip("/") for path in named)
    return any(finding.path == path or finding.path.startswith(f"{path}/") for path in folders)


def _in_system(system: FileSystem, place: str) -> Iterator[Finding]:
    """Yields the findings in a file system that is mounted at `place`."""
    for entry in directories.walk(system):
        inode, path = entry.inode, entry.path
        if not inode.is_file or not inode.size_bytes or (not place and path.startswith(OWN)):
            continue
        reads = bool(place) or user_secrets.may_hold(path)
        head = content.head(system, inode, user_secrets.HEAD_BYTES) if reads else b""
        if kind := user_secrets.kind_of(path, lambda head=head: head):  # type: ignore[misc]
            yield Finding(place + shown(path), kind)


def check_shared(found: Iterable[Finding], named: Iterable[str], name: str) -> None:
    """Raises StateError (`secret-found`) if a save for others has findings that the user has not named.

    `named`: paths in the guest. A folder names all that is in it.
    """
    paths = tuple(named)
    left = [one for one in found if not _is_named(one, paths)]
    if not left:
        return
    lines = [f"{one.path}: {one.kind}" for one in left[:MAX_NAMED]]
    more = f"\n  and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
    raise StateError(
        f"the save of {name} would give others what looks like secrets:"
        + "".join(f"\n  {line}" for line in lines)
        + more,
        code="secret-found",
        hint=f"start {name} and remove them, or name each that is for others: "
        f"`--share-secret {shlex.quote(left[0].path)}`",
        fields={"name": name, "files": "\n".join(lines)},
    )
