"""Runs kimbox, which kills itself with SIGKILL when it opens a certain file: `dying.py PATTERN COUNT ARGUMENTS...`.

For points that are too short to be detected from outside. PATTERN is a glob for the absolute path of the file. COUNT is
the number of the matching `open` call that kills the process.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import sys
from typing import Any

from kimbox.__main__ import main

pattern, count, *words = sys.argv[1:]
remaining = int(count)


def die_at(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook. Python calls it before each `open`."""
    global remaining
    if event != "open" or not isinstance(arguments[0], str | bytes):
        return
    remaining -= fnmatch.fnmatch(os.fsdecode(arguments[0]), pattern)
    if remaining == 0:
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(die_at)
sys.argv[1:] = words
main()
