"""Counts the jobs of a sweep, and says how fast it is. Pure."""

from __future__ import annotations

from collections import deque

import attrs

#: The rate is that of so many of the last jobs.
RATE_OF_LAST = 50


@attrs.define
class Tally:
    """The state of a sweep. Times are those of time.monotonic()."""

    total: int
    began_s: float
    #: Items that have a result, those among them that are not ok, and jobs that run.
    done: int = 0
    failed: int = 0
    running: int = 0
    _ends_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=RATE_OF_LAST))

    def end(self, now_s: float, *, is_ok: bool) -> None:
        """Counts a job that has run and has ended."""
        self.running -= 1
        self.done += 1
        self.failed += not is_ok
        self._ends_s.append(now_s)

    def rate_s(self, now_s: float) -> float | None:
        """Returns the number of jobs that end in a second; None as long as none has."""
        if not self._ends_s:
            return None
        is_whole = len(self._ends_s) < RATE_OF_LAST
        since_s = self.began_s if is_whole else self._ends_s[0]
        count = len(self._ends_s) if is_whole else RATE_OF_LAST - 1
        return count / max(now_s - since_s, 0.001)

    def text(self, now_s: float) -> str:
        """Returns the state in words: done, running, failed, rate and time left."""
        parts = [f"{self.done} of {self.total} done", f"{self.running} running", f"{self.failed} failed"]
        if (rate_s := self.rate_s(now_s)) is not None:
            parts.append(f"{rate_s * 60:.1f} a minute")
            if left := self.total - self.done:
                parts.append(f"{duration(left / rate_s)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a duration in words, with at most two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
