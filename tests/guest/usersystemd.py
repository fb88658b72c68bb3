"""A systemd of a user (`systemd --user`) for tests: the real one, in a mount namespace of its own.

It needs no systemd that has booted the host, only the program, and root for the namespace.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
from conftest import Kimbox, until

from kimbox import run

SYSTEMD = Path("/usr/lib/systemd/systemd")

#: Its start. /run/systemd/system tells programs that there is a systemd (sd_booted(3)).
START = f"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec {SYSTEMD} --user --log-target=console"

#: Timeout of its start and of its end, in seconds. At its end it halts the boxes.
SYSTEMD_S = 300.0


def is_possible() -> bool:
    """Whether a test can start it here."""
    return SYSTEMD.exists() and os.geteuid() == 0


@contextlib.contextmanager
def user_systemd(kimbox: Kimbox, folder: Path) -> Iterator[Kimbox]:
    """Starts it, with its units in `folder`. Yields a kimbox whose verbs run in its session."""
    own = [f"XDG_RUNTIME_DIR={folder}/run", f"XDG_CONFIG_HOME={folder}/config", f"HOME={folder}"]
    (folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    start = ["unshare", "--mount", "--propagation", "private", "env", *own, "sh", "-c", START]
    with run.background(start) as systemd:
        within = ("nsenter", "--mount", "--target", str(systemd.pid), "env", "-C", str(kimbox.folder), *own)
        systemctl = [*within, "systemctl", "--user"]
        try:
            until("systemd", lambda: "running" in run.run([*systemctl, "is-system-running"], check=False).stdout)
            yield attrs.evolve(kimbox, within=within)
            run.run([*systemctl, "exit"])
            assert 0 == systemd.wait(SYSTEMD_S)
        except BaseException:
            print(systemd.output())
            raise
