"""The files of a package that is not complete, so that the next run can replace those of an interrupted run.

A package has several files, and each appears on its own. Before a file appears, its identity is written to a note
beside the files. The note is removed with the last file. A file that the note does not describe is never replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kimbox.errors import StateError
from kimbox.newfiles import making

#: Maximum size of a note, in bytes. A package has fewer than 20 files.
MAX_NOTE_BYTES = 64 << 10

#: Inode, size in bytes, time of the last change of the content in nanoseconds.
_Identity = tuple[int, int, int]


class Files:
    """The files of a package that is being written."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def add(self, finished: Path, target: Path) -> None:
        """Notes a complete file that appears as `target` next."""
        line = json.dumps([target.name, *_identity(finished.stat())])
        os.write(self._handle, f"{line}\n".encode())
        os.fsync(self._handle)

    def write(self, target: Path, data: bytes) -> None:
        """Writes a small file. Raises the errors of `making`."""
        with making(target, finished=self.add) as work:
            (work / target.name).write_bytes(data)
            (work / target.name).chmod(0o644)


@contextlib.contextmanager
def writing(note: Path, targets: Iterable[Path]) -> Iterator[Files]:
    """Writes the files `targets` of a package inside the block. First removes those of an interrupted run.

    Raises StateError: `busy` if another process writes this package, `folder-not-private` if the note is not a file of
    this user.
    """
    note.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(note, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        raise _not_own(note) from None
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise _not_own(note)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"another process of kimbox is writing a package in {note.parent}",
                code="busy",
                hint="wait until it has finished",
                fields={"path": str(note.parent)},
            ) from None
        for path in left(note, targets):
            path.unlink()
        os.ftruncate(handle, 0)
        yield Files(handle)
        note.unlink(missing_ok=True)
    finally:
        os.close(handle)


def left(note: Path, targets: Iterable[Path]) -> list[Path]:
    """Returns the files among `targets` that an interrupted run wrote, and that are unchanged since."""
    try:
        handle = os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(handle, "rb") as file:
        if os.fstat(handle).st_uid != os.geteuid():
            return []
        identities = dict(_parsed(line) for line in file.read(MAX_NOTE_BYTES).split(b"\n") if line)
    found = []
    for path in targets:
        with contextlib.suppress(FileNotFoundError):
            if identities.get(path.name) == _identity(path.lstat()):
                found.append(path)
    return found


def _parsed(line: bytes) -> tuple[str, _Identity]:
    """Returns name and identity in a line of a note; an empty name for a line that is not complete."""
    try:
        name, inode, size_bytes, time_ns = json.loads(line)
        return str(name), (int(inode), int(size_bytes), int(time_ns))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return "", (0, 0, 0)


def _identity(info: os.stat_result) -> _Identity:
    return info.st_ino, info.st_size, info.st_mtime_ns


def _not_own(note: Path) -> StateError:
    return StateError(
        f"{note} is not a regular file of this user",
        code="folder-not-private",
        hint="choose a folder of your own with --output",
        fields={"path": str(note)},
    )
