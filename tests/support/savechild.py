"""kimbox in a process of its own that kills itself at the Nth operation of its store, for the tests of saves.

    savechild.py NUMBER SPOT save|create|start|stop|expire ARGUMENTS...

NUMBER counts the calls of the operations of OPERATIONS, of `_write` and `hardlink_to` in the store, and the writes of
records and lives, from 1. SPOT is `before` or `after` the call. No guest runs: `start` ends when the box is made.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kimbox.actions import up
from kimbox.cli.app import run
from kimbox.machine.folder import Machine
from kimbox.machine.life import Life
from kimbox.machine.state import State
from kimbox.transfer.stores import folder
from kimbox.transfer.stores.folder import FolderStore

#: Operations of a store that change it, or that are long.
OPERATIONS = ("write", "create", "remove", "read", "size")

done = 0


def dying(real: Callable[..., Any], number: int, spot: str) -> Callable[..., Any]:
    """Replaces a function: kills the process at the call with that number."""

    def call(*args: Any, **options: Any) -> Any:
        global done
        done += 1
        own = done  # a call may make others
        if own == number and spot == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = real(*args, **options)
        if own == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return call


def main(number: int, spot: str, arguments: list[str]) -> int:
    """Runs kimbox. Prints the number of operations, if it is not killed."""
    for name in OPERATIONS:
        setattr(FolderStore, name, dying(getattr(FolderStore, name), number, spot))
    folder._write = dying(folder._write, number, spot)  # type: ignore[assignment]
    Path.hardlink_to = dying(Path.hardlink_to, number, spot)  # type: ignore[method-assign]
    Machine.write_record = dying(Machine.write_record, number, spot)  # type: ignore[method-assign]
    Life.write = dying(Life.write, number, spot)  # type: ignore[method-assign]
    up.up = lambda _: State.HALTED
    code = run(arguments)
    print(f"operations {done}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
