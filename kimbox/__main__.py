"""The entry point of the program kimbox. It ends the process with the exit code of the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs kimbox with the arguments of this process, and exits with its code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
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
    from kimbox.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
