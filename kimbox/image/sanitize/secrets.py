"""Scans a disk for what no image, package or commit may hold: keys, shared secrets, identities, databases.

All file systems of a disk of kimbox's layout are read, every file once. Files that a package ships (examples, tests)
are the same on every machine: they are kept, and listed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import dpkg
from kimbox.image.disk.dpkg import merged_path
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem, Inode
from kimbox.image.disk.view import ROOT, DiskView
from kimbox.image.sanitize import key_formats, secret_paths
from kimbox.image.sanitize.key_formats import Kind

#: Content is read in pieces of this size, in bytes.
PIECE_BYTES = 1 << 20

#: Maximum number of findings.
MAX_FINDINGS = 10_000

#: Maximum number of findings that a message names.
MAX_NAMED = 10

#: A file that Python compiled, and its source (PEP 3147).
_COMPILED = re.compile(rb"(.*/)__pycache__/([^/]+)\.cpython-[0-9]{1,4}(\.opt-[12])?\.pyc")

HINT = "remove it in the box; what a package makes when it is installed belongs into a step of `provision`"


@attrs.frozen(order=True)
class Finding:
    """A file: its path, escaped by `directories.shown`, what it is, and the package that ships it, if any."""

    path: str
    kind: str
    package: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """As in image.json and kimbox.json."""
        return attrs.asdict(self)


@attrs.frozen
class Findings:
    """Findings on a disk, sorted: `made` must not leave this host, `kept` may."""

    made: tuple[Finding, ...] = ()
    kept: tuple[Finding, ...] = ()

    def lines(self) -> list[str]:
        """One line for each finding that is kept."""
        return [f"{f.path}: {f.kind}, " + (f"of the package {f.package}" if f.package else "kept") for f in self.kept]

    def check(self, what: str, hint: str = HINT) -> None:
        """Raises ImageError, with paths and kinds, if a finding must not leave this host; `what` names the disk."""
        if not self.made:
            return
        named = "\n".join(f"  {finding.path}: {finding.kind}" for finding in self.made[:MAX_NAMED])
        rest = len(self.made) - MAX_NAMED
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise ImageError(f"{what} holds what no other machine may have:\n{named}{more}", hint=hint)


def scan(disk: DiskView, *, on_part: Callable[[str], None] = lambda _: None) -> Findings:
    """Scans a disk of kimbox's layout. Raises ImageError if it cannot be read, or has another layout."""
    found: list[tuple[Entry, str, Kind]] = []
    mounted = disk.contents.mounted
    for name, volume in mounted.items():
        on_part(name or "/")
        for entry, kind in look(volume.file_system, volume.size_bytes):
            found.append((entry, name, kind))
            if len(found) > MAX_FINDINGS:
                raise ImageError(f"the disk holds more than {MAX_FINDINGS} keys, secrets and identities", hint=HINT)
    shipped = _shipped(mounted[ROOT].file_system, [entry for entry, name, _ in found if name == ROOT])
    made: list[Finding] = []
    kept: list[Finding] = []
    for entry, name, kind in found:
        package = shipped.get(entry.path) if name == ROOT else None
        finding = Finding(name + shown(entry.path), str(kind), package)
        (kept if package or kind.is_harmless else made).append(finding)
    return Findings(tuple(sorted(made)), tuple(sorted(kept)))


def look(system: FileSystem, limit_bytes: int) -> Iterator[tuple[Entry, Kind]]:
    """Yields each file that is a finding by its path or content.

    Raises ImageError if the files hold more than `limit_bytes` together: their blocks overlap then.
    """
    seen: dict[int, Kind | None] = {}
    left = [limit_bytes]
    for entry in directories.walk(system):
        inode = entry.inode
        if not inode.is_file or not inode.size_bytes:
            continue
        try:
            kind = secret_paths.of_path(entry.path, lambda inode=inode: _head(system, inode))  # type: ignore[misc]
            if kind is None:
                if inode.number not in seen:
                    seen[inode.number] = key_formats.of_content(inode.size_bytes, _pieces(system, inode, left))
                kind = seen[inode.number]
        except ImageError as error:
            raise ImageError(f"{shown(entry.path)} cannot be read: {error.message}", hint=error.hint) from None
        if kind is not None:
            yield entry, kind


def _head(system: FileSystem, inode: Inode) -> bytes:
    return ext4data.head(system, inode, secret_paths.HEAD_BYTES)


def _pieces(system: FileSystem, inode: Inode, left: list[int]) -> Iterator[bytes]:
    """The written bytes of a file. Holes are left out, because a sparse file may be larger than any disk."""
    unit = system.block_bytes
    for first, count, start in ext4data.runs(system, inode):
        end = min((first + count) * unit, inode.size_bytes) - first * unit
        left[0] -= end
        if left[0] < 0:
            raise ImageError("its file system is damaged: files over each other")
        for at in range(0, end, PIECE_BYTES):
            yield system.read(start * unit + at, min(PIECE_BYTES, end - at))


def _shipped(system: FileSystem, entries: Iterable[Entry]) -> dict[bytes, str]:
    """Path and package of the entries that are as a package ships them, or compiled by Python from such a file."""
    wanted = {entry.path: entry for entry in entries}
    sources = {path: _source(path) for path in wanted}
    if not wanted:
        return {}
    digests = dpkg.digests(system, {merged_path(path) for path in (*wanted, *filter(None, sources.values()))})
    found: dict[bytes, str] = {}
    left = system.blocks * system.block_bytes
    for path, entry in wanted.items():
        source = sources[path]
        origin = entry if source is None else directories.find(system, source)
        known = digests.get(merged_path(source or path))
        if not known or not origin or not origin.inode.is_file:
            continue
        if origin.inode.size_bytes <= left:  # files of packages have no holes, and fit
            left -= origin.inode.size_bytes
            if known[0] == _md5(system, origin.inode):
                found[path] = known[1]
    return found


def _source(path: bytes) -> bytes | None:
    """The source of a file that Python compiled; None for any other file."""
    match = _COMPILED.fullmatch(path)
    return match[1] + match[2] + b".py" if match else None


def _md5(system: FileSystem, inode: Inode) -> str:
    """MD5 hex digest of a file, as dpkg records it."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in ext4data.chunks(system, inode, inode.size_bytes):
        digest.update(piece)
    return digest.hexdigest()
