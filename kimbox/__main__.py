"""The entry point: the one place that turns an error into words and an exit code."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs kimbox with the arguments of this process, and exits with its code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    if sys.stdout is None:  # a file that is opened later would be taken for it
        sys.exit("kimbox: error: stdout is closed; >/dev/null lets nothing be seen")
    if sys.argv[1:] == ["--version"]:  # asked by scripts, so it loads nothing
        from kimbox import __version__

        try:
            print(f"kimbox {__version__}", flush=True)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again at its end
            sys.exit(f"kimbox: error: stdout cannot be written: {error.strerror}")
        return
    from kimbox.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
