"""The progress of the work, written to a pipe as a line of `name=number` words, for pipeline-status."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

#: Interval at which a line is repeated if no count has changed, in seconds: ages in it must not become old.
REPEAT_S = 60.0


class Status:
    """The pipe at `path`; None disables the report."""

    def __init__(self, path: Path | None, *, repeat_s: float = REPEAT_S) -> None:
        self._path = path
        self._repeat_s = repeat_s
        self._told: tuple[Mapping[str, int], float] | None = None

    def tell(self, *, ages: Mapping[str, float] | None = None, **counts: int) -> None:
        """Writes counts, and ages in seconds, if a count has changed or the last line is older than the interval.

        Never waits: without a reader the next call tries again.
        """
        now = time.monotonic()
        if self._path is None or (self._told and counts == self._told[0] and now - self._told[1] < self._repeat_s):
            return
        whole = {**counts, **{name: min(int(age), 999_999_999) for name, age in (ages or {}).items()}}
        line = " ".join(f"{name}={count}" for name, count in whole.items()).encode() + b"\n"
        with contextlib.suppress(OSError):
            pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.write(pipe, line)
            finally:
                os.close(pipe)
            self._told = counts, now
