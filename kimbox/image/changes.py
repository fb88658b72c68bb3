"""What a maintainer changed: packages and files of one disk against those of the image that it was made from.

Both are raw disks of kimbox's layout that nobody writes to; debugfs(8) lists their folders and prints dpkg's files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image import cleaned, ext4

#: Version of the record.
FORMAT = 1

#: What debugfs may take for one level of folders, in seconds; more entries are not looked at.
TIMEOUT_S = 600.0
MAX_ENTRIES = 2_000_000

#: A file that is larger counts as changed where its time did: its content is not compared. That of others is, whatever
#: their time: two versions may be of one second, and a guest may set any time.
MAX_COMPARED_BYTES = 64 << 20

#: How the status of a package ends that is there (dpkg-query(1)).
INSTALLED = (" installed", " triggers-awaited", " triggers-pending")

#: Where dpkg notes what is installed; its own files tell nothing that the packages do not.
DPKG = "/var/lib/dpkg"

#: Folders that a merged /usr has under two names; lists of packages may have either.
MERGED = re.compile(r"^/(bin|sbin|lib|lib64)/")

_ENTRY = re.compile(r"/(\d+)/([0-7]{6})/(\d+)/(\d+)/([^/]+)/(\d*)/?")
_PROMPT = re.compile(r"^debugfs: .*\n", re.MULTILINE)
_STATUS = re.compile(r"^(Package|Status|Architecture|Version): (.*)$", re.MULTILINE)


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


@attrs.frozen
class _Entry:
    """What a folder says of a name, and what its inode says besides."""

    inode: int
    mode: int
    owner: tuple[int, int]
    size_bytes: int


@attrs.frozen
class _System:
    """A file system on a raw disk, by debugfs; never written to."""

    disk: Path
    offset: int
    system: ext4.FileSystem

    @classmethod
    def at(cls, disk: Path, handle: int, offset: int) -> Self:
        """The file system that begins there."""
        return cls(disk, offset, ext4.open_at(lambda start, size: os.pread(handle, size, offset + start)))

    def ask(self, commands: list[str]) -> list[str]:
        """What debugfs prints for each command."""
        done = run.run(
            ["debugfs", "-f", "-", f"{self.disk.name}?offset={self.offset}"],
            input="".join(f"{command}\n" for command in commands),
            cwd=self.disk.parent,
            timeout_s=TIMEOUT_S,
        )
        said = _PROMPT.split(done.stdout)[1:]
        if len(said) != len(commands):
            raise ImageError("the folders of the disk cannot be listed")
        return said

    def entries(self, prefix: str = "") -> dict[str, _Entry]:
        """Every name below the top folder, with `prefix` before it."""
        found: dict[str, _Entry] = {}
        level = [(prefix, ext4.ROOT_INODE)]
        while level:
            below = []
            for (path, _), said in zip(level, self.ask([f"ls -p <{inode}>" for _, inode in level]), strict=True):
                for line in said.splitlines():
                    match = _ENTRY.fullmatch(line)
                    if not match or match[5] in (".", "..") or match[1] == "0":
                        continue
                    name = f"{path}/{match[5]}"
                    entry = _Entry(int(match[1]), int(match[2], 8), (int(match[3]), int(match[4])), int(match[6] or 0))
                    found[name] = entry
                    if stat.S_ISDIR(entry.mode) and match[5] != "lost+found":
                        below.append((name, entry.inode))
            if len(found) > MAX_ENTRIES:
                raise ImageError(f"the disk holds more than {MAX_ENTRIES} files")
            level = below
        return found

    def content(self, entry: _Entry) -> bytes | None:
        """The content of a file, None where it lies in too many pieces or is too large to be compared."""
        system = self.system
        inode = ext4.inode_of(system, entry.inode)
        count = -(-inode.size_bytes // system.block_bytes)
        if inode.size_bytes > MAX_COMPARED_BYTES or sum(length for _, length, _ in inode.extents) < count:
            return None
        pieces = (
            system.read(start * system.block_bytes, length * system.block_bytes)
            for _, length, start in sorted(inode.extents)
        )
        return b"".join(pieces)[: inode.size_bytes]

    def modified_s(self, entry: _Entry) -> int:
        """When the content was changed last, by the inode."""
        return ext4.inode_of(self.system, entry.inode).modified_s


def find(former: Path, disk: Path, *, on_part: Callable[[str], None] = lambda _: None) -> Changes:
    """What differs between two raw disks of kimbox's layout. Raises ImageError if one cannot be read."""
    places = cleaned.places(former), cleaned.places(disk)
    with former.open("rb") as one, disk.open("rb") as two:
        handles = one.fileno(), two.fileno()
        on_part("/")
        old, new = map(_System.at, (former, disk), handles, (place.root[0] for place in places))
        moved = _moved(_packages_of(old), _packages_of(new))
        theirs = _files_of(old, moved) | _files_of(new, moved)
        parts = [_compare(old, new, "")]
        on_part("/boot")
        old, new = map(_System.at, (former, disk), handles, (place.boot[0] for place in places))
        parts.append(_compare(old, new, "/boot"))
    added, removed, changed = (sorted(set.union(*found)) for found in zip(*parts, strict=True))
    count = sum(_plain(path) in theirs for found in (added, removed, changed) for path in found)
    added, removed, changed = (
        [path for path in found if _plain(path) not in theirs and not path.startswith(f"{DPKG}/")]
        for found in (added, removed, changed)
    )
    return Changes(moved, tuple(added), tuple(removed), tuple(changed), count)


def packages(disk: Path) -> dict[str, tuple[str, str]]:
    """Installed packages of a raw disk of kimbox's layout: name -> version, architecture; none without dpkg.

    Raises ImageError if the disk cannot be read.
    """
    at = cleaned.places(disk).root[0]
    with disk.open("rb") as file:
        return _installed(_System.at(disk, file.fileno(), at))


def _moved(old: dict[str, str], new: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Packages whose version is not the same."""
    both = {name: (old.get(name, ""), new.get(name, "")) for name in sorted({*old, *new})}
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def _compare(old: _System, new: _System, prefix: str) -> tuple[set[str], set[str], set[str]]:
    """Paths that came, went, and changed; of a folder only permissions and owner count."""
    before, after = old.entries(prefix), new.entries(prefix)
    changed = {path for path in before.keys() & after.keys() if _differs(old, before[path], new, after[path])}
    return after.keys() - before.keys(), before.keys() - after.keys(), changed


def _differs(old: _System, one: _Entry, new: _System, two: _Entry) -> bool:
    if (one.mode, one.owner) != (two.mode, two.owner):
        return True
    if stat.S_ISDIR(one.mode):
        return False
    if one.size_bytes != two.size_bytes:
        return True
    contents = (old.content(one), new.content(two)) if stat.S_ISREG(one.mode) else (None, None)
    if None in contents:
        return old.modified_s(one) != new.modified_s(two)
    return contents[0] != contents[1]


def _packages_of(system: _System) -> dict[str, str]:
    """Installed packages and their versions."""
    return {name: version for name, (version, _) in _installed(system).items()}


def _installed(system: _System) -> dict[str, tuple[str, str]]:
    """Version and architecture of each package that dpkg says is installed."""
    found = {}
    for block in system.ask([f"cat {DPKG}/status"])[0].split("\n\n"):
        fields = dict(_STATUS.findall(block))
        if fields.get("Status", "").endswith(INSTALLED) and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", ""), fields.get("Architecture", "")
    return found


def _files_of(system: _System, packages: Iterable[str]) -> set[str]:
    """Every path that these packages have, by dpkg's lists, each with the name that a merged /usr gives it."""
    names = [name for name in packages if re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name)]
    asked = [f"cat {DPKG}/info/{name}{suffix}.list" for name in names for suffix in ("", ":amd64")]
    return {_plain(line) for text in (system.ask(asked) if asked else ()) for line in text.splitlines() if line}


def _plain(path: str) -> str:
    return MERGED.sub(r"/usr/\1/", path)
