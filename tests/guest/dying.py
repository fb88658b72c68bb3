"""kimbox that kills itself with SIGKILL where it opens a certain file: `dying.py PATTERN COUNT kimbox-words...`.

For points too brief to be seen from outside. PATTERN is a glob for the file's whole path, COUNT says at which opening.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import sys
from typing import Any

from kimbox.__main__ import main

pattern, count, *words = sys.argv[1:]
left = int(count)


def die_at(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook; sees each opening before it happens."""
    global left
    if event != "open" or not isinstance(arguments[0], str | bytes):
        return
    left -= fnmatch.fnmatch(os.fsdecode(arguments[0]), pattern)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(die_at)
sys.argv[1:] = words
main()
