"""The folder into which workers write. Whoever has a worker's key can put anything there, under any name, at any time.

So a file is opened once, without following a link, and what is checked is what was read from it. It stays a stranger's:
its writer may still have it open, so that it is never moved to where results lie. Nothing here waits for a file:
opening a pipe does not block, and nothing but a plain file of the right size, owner and number of names is read.
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

#: Names looked at in one go: a flood of them must not keep the director from its work.
AT_ONCE = 256

#: What a worker has not completed within this time it never will.
PART_S = 3600.0

#: What a worker calls a file that it has not written to its end.
PART = ".part"


class Inbox:
    """Files that came in, which belong to the account `owner` (a number)."""

    def __init__(self, folder: Path, owner: int, limit: int) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._owner = owner
        self._limit = limit

    def names(self) -> Iterator[str]:
        """Names of files that are there and complete; those that will never be are removed."""
        with os.scandir(self._fd) as entries:
            found = [entry.name for entry in islice(entries, AT_ONCE)]
        for name in found:  # first of all: where the disk is full, taking in the others fails
            if name.endswith(PART):
                self._remove_old(name)
        yield from sorted(name for name in found if not name.endswith(PART))

    def read(self, name: str) -> bytes:
        """What is in a file, or BadJobError."""
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
        """Removes a file, or an empty folder; what is neither stays."""
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
