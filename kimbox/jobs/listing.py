"""The files of a folder with their digests: what went into a job, and what came out of it.

A listing has files and symbolic links: name, size, digest, target, and whether a file is a program. It has no times, so
that a copy of a folder has the same listing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kimbox.files import CHUNK_BYTES
from kimbox.jobs.disk.source import Source

#: Maximum number of files that a record lists. The digest and the number count all of them.
MAX_LISTED = 10_000


@dataclass(frozen=True, order=True, slots=True)
class Entry:
    """A file or a symbolic link. `path` is below the folder."""

    path: bytes
    #: sha256 hex digest of a file; empty for a link.
    sha256: str = ""
    size_bytes: int = 0
    is_program: bool = False
    #: Target of a link; None for a file.
    target: bytes | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in a record. Bytes that are not UTF-8 are lone surrogates (PEP 383), which JSON escapes."""
        path = os.fsdecode(self.path)
        if self.target is not None:
            return {"path": path, "link": os.fsdecode(self.target)}
        about = {"path": path, "sha256": self.sha256, "size_bytes": self.size_bytes}
        return about | {"program": True} if self.is_program else about

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`. The value must be valid by job.schema.json. Raises ValueError for other text."""
        path = os.fsencode(value["path"])
        if "link" in value:
            return cls(path, target=os.fsencode(value["link"]))
        return cls(path, value["sha256"], value["size_bytes"], value.get("program", False))


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of a folder, by path."""

    entries: Mapping[bytes, Entry]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """The listing of entries in any order."""
        return cls({entry.path: entry for entry in sorted(entries)})

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of all entries."""
        lines = (json.dumps(entry.as_json(), sort_keys=True) + "\n" for entry in self.entries.values())
        whole = hashlib.sha256()
        for line in lines:
            whole.update(line.encode())
        return f"sha256:{whole.hexdigest()}"

    def as_json(self) -> dict[str, Any]:
        """The listing in a record. `files` is null if there are more than MAX_LISTED."""
        is_short = len(self.entries) <= MAX_LISTED
        return {
            "digest": self.digest,
            "count": len(self.entries),
            "size_bytes": sum(entry.size_bytes for entry in self.entries.values()),
            "files": [entry.as_json() for entry in self.entries.values()] if is_short else None,
        }


def of_source(source: Source, without: Iterable[bytes] = ()) -> Listing:
    """The listing of a folder that was packed, without the files that kimbox has added.

    Raises KimboxError (`file-changed`) if a file is another one than that which was packed. OSError passes.
    """
    entries: list[Entry] = []
    left_out = frozenset(without)
    for item in source.items:
        if item.is_folder or item.paths[0] in left_out:
            continue
        if stat.S_ISLNK(item.mode):
            entries += [Entry(path, target=item.target) for path in item.paths]
            continue
        with source.content(item) as read:
            sha256 = _sha256(read, item.size_bytes)
        is_program = bool(item.mode & stat.S_IXUSR)
        entries += [Entry(path, sha256, item.size_bytes, is_program) for path in item.paths]
    return Listing.of(entries)


def of_folder(folder: Path) -> Listing:
    """The listing of a folder with results; it is empty if there is no such folder. OSError passes.

    Only files and links are listed: nothing else is extracted from a disk. No link is followed.
    """
    root = os.fsencode(folder)
    return Listing.of(_entries(root)) if os.path.isdir(root) and not os.path.islink(root) else Listing({})  # noqa: PTH112, PTH114


def _entries(root: bytes) -> Iterator[Entry]:
    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(root, onerror=fail):
        for name in [*folders, *names]:
            full = b"%s/%s" % (parent, name)
            path = os.path.relpath(full, root)
            info = os.lstat(full)
            if stat.S_ISLNK(info.st_mode):
                yield Entry(path, target=os.readlink(full))  # noqa: PTH115
            elif stat.S_ISREG(info.st_mode):
                handle = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    sha256 = _sha256(lambda at, size, handle=handle: os.pread(handle, size, at), info.st_size)  # type: ignore[misc]
                finally:
                    os.close(handle)
                yield Entry(path, sha256, info.st_size, bool(info.st_mode & stat.S_IXUSR))


def _sha256(read: Callable[[int, int], bytes], size_bytes: int) -> str:
    digest = hashlib.sha256()
    for at in range(0, size_bytes, CHUNK_BYTES):
        digest.update(read(at, min(CHUNK_BYTES, size_bytes - at)))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Difference:
    """A file in which two listings differ. `kind`: `added`, `missing` (both seen from the second one) or `changed`."""

    path: bytes
    kind: str


def compare(first: Listing, second: Listing, is_ignored: Callable[[bytes], bool] = lambda _: False) -> list[Difference]:
    """Returns the files in which two listings differ, by path."""
    found = []
    for path in sorted({*first.entries, *second.entries}):
        old, new = first.entries.get(path), second.entries.get(path)
        if old != new and not is_ignored(path):
            found.append(Difference(path, "added" if old is None else "missing" if new is None else "changed"))
    return found
