"""A command that starts a program again if it is killed, for programs that serve a box as long as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kimbox.run import require

#: For sh(1): runs a program until it exits with 0, fails five times by itself (not by a signal), or cannot be started.
#: The pauses between two runs are 0, 1, 3, 7, 15, 31 and then 63 s.
UNTIL_DONE = """\
pause=0 failures=0
until "$@"; do
    status=$?
    case $status in 126 | 127) exit "$status" ;; esac
    [ "$status" -gt 128 ] || failures=$((failures + 1))
    [ "$failures" -lt 5 ] || exit "$status"
    sleep "$pause"
    [ "$pause" -ge 60 ] || pause=$((pause * 2 + 1))
done
"""


def restarting(argv: Sequence[str | Path]) -> list[str]:
    """Returns the command of a shell that runs a program, and starts it again if it is killed or fails.

    The shell ends with the program, and needs no processor meanwhile. Raises MissingToolError if there is no such
    program.
    """
    return [require("sh"), "-c", UNTIL_DONE, "sh", require(str(argv[0])), *map(str, argv[1:])]
