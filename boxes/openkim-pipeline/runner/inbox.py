"""The folder into which workers write. Anybody with the key of a worker can write anything there, at any time.

So a file is opened once, without following links, and the checks apply to what was read from it. Its writer may still
have it open, so it is never moved to the results. Nothing here waits for a file: opening a pipe does not block, and
only a regular file of the right size, owner and number of links is read.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jobs import BadJobError

#: Maximum number of names that are read at once, so that a flood of files does not block the director.
AT_ONCE = 256

#: An upload that is not complete after this time is removed, in seconds.
PART_S = 3600.0

#: Suffix of an upload that is not complete.
PART = ".part"


class Inbox:
    """The uploads, which must belong to the account `owner` (a uid)."""

    def __init__(self, folder: Path, owner: int, limit: int) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._owner = owner
        self._limit = limit

    def names(self) -> Iterator[str]:
        """Names of complete uploads. Removes incomplete ones that are too old."""
        with os.scandir(self._fd) as entries:
            found = [entry.name for entry in islice(entries, AT_ONCE)]
        for name in found:  # first, because the other uploads cannot be kept if the disk is full
            if name.endswith(PART):
                self._remove_old(name)
        yield from sorted(name for name in found if not name.endswith(PART))

    def read(self, name: str) -> bytes:
        """The content of a file. Raises BadJobError for an irregular or too large file."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            raise BadJobError(f"it cannot be opened: {error.strerror}") from None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != self._owner:
                raise BadJobError("it is no plain file of a worker's")
            content = b""
            while len(content) <= self._limit and (more := os.read(fd, self._limit + 1 - len(content))):
                content += more
        finally:
            os.close(fd)
        if len(content) > self._limit:
            raise BadJobError(f"it has more than {self._limit} bytes")
        return content

    def remove(self, name: str) -> None:
        """Removes a file or an empty folder; anything else stays."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except IsADirectoryError:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass

    def _remove_old(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime > PART_S:
                self.remove(name)
