"""Scans a disk for files that no image, package or commit may hold: keys, shared secrets, identities, databases.

The scan reads every file of every file system once. The disk must have kimbox's layout. Files that a package ships
(examples, tests) are the same on every machine: they are allowed, and listed.
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

#: Maximum number of findings that a message lists.
MAX_NAMED = 10

#: Path of a file that Python compiled (PEP 3147): its groups are the folder and name of the source.
_COMPILED = re.compile(rb"(.*/)__pycache__/([^/]+)\.cpython-[0-9]{1,4}(\.opt-[12])?\.pyc")

#: Hint of the error for a finding.
HINT = (
    "remove the files in the box; if a package creates one during its installation, install the package in a step of "
    "`provision`"
)


@attrs.frozen(order=True)
class Finding:
    """A file: its path, escaped by `directories.shown`, its kind, and the package that ships it, if any."""

    path: str
    kind: str
    package: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """The finding as in image.json and kimbox.json."""
        return attrs.asdict(self)


@attrs.frozen
class Findings:
    """Findings on a disk, sorted."""

    #: Must not leave this host: no other machine may have such a file.
    forbidden: tuple[Finding, ...] = ()
    #: Shipped by a package, or harmless.
    kept: tuple[Finding, ...] = ()

    def lines(self) -> list[str]:
        """A line for each finding that is kept, for the log."""
        return [f"{f.path}: {f.kind}, " + (f"of the package {f.package}" if f.package else "kept") for f in self.kept]

    def check(self, what: str, hint: str = HINT) -> None:
        """Raises ImageError, with paths and kinds, if there is a forbidden file. `what` names the disk."""
        if not self.forbidden:
            return
        lines = [f"{finding.path}: {finding.kind}" for finding in self.forbidden[:MAX_NAMED]]
        listed = "".join(f"\n  {line}" for line in lines)
        omitted = len(self.forbidden) - MAX_NAMED
        more = f"\n  and {omitted} more" if omitted > 0 else ""
        raise ImageError(
            f"{what} holds files that no other machine may have:{listed}{more}",
            code="secret-found",
            hint=hint,
            fields={"name": what, "files": "\n".join(lines)},
        )


def scan(disk: DiskView, *, on_part: Callable[[str], None] = lambda _: None) -> Findings:
    """Scans a disk. `on_part` gets the name of each file system before it is read.

    Raises ImageError if the disk cannot be read or has another layout than kimbox's, and for more than MAX_FINDINGS.
    """
    files: list[tuple[Entry, str, Kind]] = []
    mounted = disk.contents.mounted
    for name, volume in mounted.items():
        on_part(name or "/")
        for entry, kind in scan_files(volume.file_system, volume.size_bytes):
            files.append((entry, name, kind))
            if len(files) > MAX_FINDINGS:
                raise ImageError(
                    f"the disk holds more than {MAX_FINDINGS} keys, secrets and identities",
                    code="too-complex",
                    hint=HINT,
                )
    shipped = _shipped(mounted[ROOT].file_system, [entry for entry, name, _ in files if name == ROOT])
    forbidden: list[Finding] = []
    kept: list[Finding] = []
    for entry, name, kind in files:
        package = shipped.get(entry.path) if name == ROOT else None
        finding = Finding(name + shown(entry.path), str(kind), package)
        (kept if package or kind.is_harmless else forbidden).append(finding)
    return Findings(tuple(sorted(forbidden)), tuple(sorted(kept)))


def scan_files(system: FileSystem, limit_bytes: int) -> Iterator[tuple[Entry, Kind]]:
    """Yields each file that is a finding by its path or content, and its kind.

    Raises ImageError if a file cannot be read, or if the files have more than `limit_bytes` together, which means that
    their blocks overlap.
    """
    kinds: dict[int, Kind | None] = {}
    left_bytes = [limit_bytes]
    for entry in directories.walk(system):
        inode = entry.inode
        if not inode.is_file or not inode.size_bytes:
            continue
        try:
            kind = secret_paths.kind_of_path(entry.path, lambda inode=inode: _head(system, inode))  # type: ignore[misc]
            if kind is None:
                if inode.number not in kinds:
                    pieces = _pieces(system, inode, left_bytes)
                    kinds[inode.number] = key_formats.kind_of_content(inode.size_bytes, pieces)
                kind = kinds[inode.number]
        except ImageError as error:
            path = shown(entry.path)
            raise ImageError(
                f"{path} cannot be read: {error.message}",
                code=error.code,
                hint=error.hint,
                fields={**error.fields, "path": path},
            ) from None
        if kind is not None:
            yield entry, kind


def _head(system: FileSystem, inode: Inode) -> bytes:
    """The start of a file, for secret_paths."""
    return ext4data.head(system, inode, secret_paths.HEAD_BYTES)


def _pieces(system: FileSystem, inode: Inode, left_bytes: list[int]) -> Iterator[bytes]:
    """Yields the written bytes of a file, without holes, because a sparse file may be larger than any disk.

    `left_bytes` holds the number of bytes that all files together may still have.
    """
    unit = system.block_bytes
    for first, count, start in ext4data.runs(system, inode):
        end = min((first + count) * unit, inode.size_bytes) - first * unit
        left_bytes[0] -= end
        if left_bytes[0] < 0:
            raise ImageError(
                "its file system is damaged: the blocks of files overlap",
                code="disk-damaged",
                fields={"fault": "overlapping-files"},
            )
        for at in range(0, end, PIECE_BYTES):
            yield system.read(start * unit + at, min(PIECE_BYTES, end - at))


def _shipped(system: FileSystem, entries: Iterable[Entry]) -> dict[bytes, str]:
    """Path -> package, for entries that are as a package ships them, or that Python compiled from such a file."""
    by_path = {entry.path: entry for entry in entries}
    sources = {path: _source(path) for path in by_path}
    if not by_path:
        return {}
    digests = dpkg.digests(system, {merged_path(path) for path in (*by_path, *filter(None, sources.values()))})
    packages: dict[bytes, str] = {}
    left_bytes = system.blocks * system.block_bytes
    for path, entry in by_path.items():
        source = sources[path]
        shipped_entry = entry if source is None else directories.find(system, source)
        md5_and_package = digests.get(merged_path(source or path))
        if not md5_and_package or not shipped_entry or not shipped_entry.inode.is_file:
            continue
        # Files of packages have no holes, so together they are not larger than the file system.
        if shipped_entry.inode.size_bytes <= left_bytes:
            left_bytes -= shipped_entry.inode.size_bytes
            md5, package = md5_and_package
            if md5 == _md5(system, shipped_entry.inode):
                packages[path] = package
    return packages


def _source(path: bytes) -> bytes | None:
    """Path of the source of a file that Python compiled, or None for any other file."""
    match = _COMPILED.fullmatch(path)
    return match[1] + match[2] + b".py" if match else None


def _md5(system: FileSystem, inode: Inode) -> str:
    """MD5 hex digest of a file, as dpkg records it."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in ext4data.chunks(system, inode, inode.size_bytes):
        digest.update(piece)
    return digest.hexdigest()
