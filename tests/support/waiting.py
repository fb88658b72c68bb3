"""Waits for conditions in tests without a guest."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Timeout of a wait. The conditions take a few seconds; a busy host needs longer.
LIMIT_S = 60.0


def until(what: str, holds: Callable[[], bool]) -> None:
    """Waits until `holds` returns true. At the timeout, fails with the name of the condition."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, f"timeout after {LIMIT_S:g} s: {what}"
        time.sleep(0.02)
