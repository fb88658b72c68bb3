"""A kimbox in a process of its own, for the tests of leases. It puts a disk into the store and creates a machine.

    leasechild.py DISK DIGEST FOLDER

While it has the lease, it starts a program that continues after it ends, writes FOLDER/leased-PID, and waits for
FOLDER/go. Then it writes the record of a machine that was created from the image.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import makemachine

from kimbox import run
from kimbox.image import obtain
from kimbox.spec.model import RemoteImage

#: Timeout of the wait for FOLDER/go, and duration of the program.
BOUND_S = 60

#: Writes its process id, then sleeps.
PROGRAM = 'echo $$ >"$0.new"; mv "$0.new" "$0"; exec sleep "$1"'


def main(disk: str, digest: str, folder: Path) -> None:
    """Obtains the image and creates one machine."""
    with obtain.leased_file(RemoteImage(disk, digest)) as image:
        program = folder / f"program-{os.getpid()}"
        run.detach(["sh", "-c", PROGRAM, program, str(BOUND_S)], log=folder / "log")
        wait_for(program)
        (folder / f"leased-{os.getpid()}").touch()
        wait_for(folder / "go")
        makemachine.make_machine(f"box-{os.getpid()}", image=image.key)


def wait_for(path: Path) -> None:
    """Waits until the file exists."""
    deadline = time.monotonic() + BOUND_S
    while not path.exists():
        if time.monotonic() > deadline:
            sys.exit(f"{path.name} did not appear")
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
