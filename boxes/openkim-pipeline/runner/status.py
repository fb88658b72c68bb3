"""The progress of the work, written to a pipe as a line of `name=number` words, for pipeline-status."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Status:
    """The pipe at `path`; None disables the report."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._told = b""

    def tell(self, **counts: int) -> None:
        """Writes the counts if they have changed. Never waits: without a reader the next call tries again."""
        line = " ".join(f"{name}={count}" for name, count in counts.items()).encode() + b"\n"
        if self._path is None or line == self._told:
            return
        with contextlib.suppress(OSError):
            pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.write(pipe, line)
            finally:
                os.close(pipe)
            self._told = line
