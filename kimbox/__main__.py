"""The entry point of the program kimbox. It ends the process with the exit code of the command line."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import TextIO

#: Number of new objects after which Python looks for unreachable ones. By default it does that some twenty times while
#: kimbox loads its modules, which is a twentieth of the time of a short command.
GC_THRESHOLD = 100_000


def _null(fd: int, mode: str) -> TextIO:
    """Returns /dev/null as a file of a standard stream that was closed (`<&-`).

    Otherwise a file that is opened later would get its descriptor, and the programs that kimbox starts would use that.
    """
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != fd:
        os.dup2(opened, fd)
        os.close(opened)
    os.set_inheritable(fd, True)
    return io.TextIOWrapper(io.FileIO(fd, mode))


def main() -> None:
    """Runs kimbox with the arguments of this process, and exits with its code."""
    if sys.stdin is None:
        sys.stdin = _null(0, "r")
    if sys.stderr is None:
        sys.stderr = _null(2, "w")
    if sys.stdout is None:  # a file that is opened later would get the file descriptor of stdout
        sys.exit("kimbox: error: stdout is closed (>/dev/null discards the output)")
    if sys.argv[1:] == ["--version"]:  # scripts call this often, so it loads no other module
        from kimbox import __version__

        try:
            print(f"kimbox {__version__}", flush=True)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's flush at exit succeeds
            sys.exit(f"kimbox: error: stdout cannot be written: {error.strerror}")
        return
    gc.set_threshold(GC_THRESHOLD)
    from kimbox.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
