"""Temporary folders in $TMPDIR that do not outlive a process that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kimbox.filelocks import NO_LOCKS

#: Name of a temporary folder.
_NAME = re.compile(r"kimbox-[a-z]{1,20}-[a-z0-9_]{8}")


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder in $TMPDIR that only this user can enter. It is removed at the end of the block.

    `prefix` is `kimbox-WORD-`. The first call of a process removes the folders of processes that were killed. On a file
    system without locks, those stay.
    """
    _sweep()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # another process removed the folder, because it was not locked yet
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if folder.exists():
            break
        os.close(handle)  # it was removed before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@functools.cache
def _sweep() -> None:
    """Removes this user's folders of `temporary_folder` that no process has locked."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if not _NAME.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):  # BlockingIOError: its process still runs
                handle = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if os.fstat(handle).st_uid == os.getuid():
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(handle)
