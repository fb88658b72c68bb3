"""Waiting for what others do, where no guest is in it."""

from __future__ import annotations

import time
from collections.abc import Callable

#: What is waited for takes seconds; a busy machine may need longer.
LIMIT_S = 60.0


def until(what: str, holds: Callable[[], bool]) -> None:
    """Waits until something holds; fails, naming it, when the time is up."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(0.02)
