"""Runs `kimbox expire` in the background after a verb, if something is due: not every host has a timer of systemd.

It costs a look at one small file of each machine that has a lifetime.
"""

from __future__ import annotations

import os
import sys

from kimbox import paths

#: Verbs after which nothing is looked at: they do it themselves, or a shell waits for them.
_WITHOUT = frozenset({"", "expire", "completion", "schema"})


def check(verb: str) -> None:
    """Warns of lifetimes that end soon, and starts `kimbox expire` if something is due. Raises no error."""
    if verb in _WITHOUT or not _has_work():
        return
    import time

    from kimbox.errors import KimboxError
    from kimbox.files import is_locked
    from kimbox.log import log
    from kimbox.machine import life as lives
    from kimbox.transfer.notices import spool

    try:
        now_s, is_due = time.time(), False
        for machine, life in lives.lives():
            lifetime = life.lifetime
            if lifetime is None:
                continue
            if lifetime.is_to_announce(now_s):
                minutes = round(lifetime.remaining_s(now_s) / 60)
                log.warn(f"{machine.name} is shut down and saved in {minutes} min: `kimbox extend {machine.name}`")
            elif lifetime.is_due(now_s):
                log.warn(f"the lifetime of {machine.name} has ended: it is being shut down and saved")
            is_due = is_due or lifetime.is_to_announce(now_s) or lifetime.is_due(now_s)
        if (is_due or spool.has_due(now_s)) and not is_locked(paths.home() / lives.LOCK_NAME):
            start()
    except (KimboxError, OSError) as error:
        log.detail(f"`kimbox expire` was not started: {error}")


def start() -> None:
    """Starts `kimbox expire`, which continues after this process. Stores need the environment of the user."""
    from kimbox.run import detach

    command = [sys.executable, "-m", "kimbox", "expire"]
    detach(command, log=paths.home() / "expire.log", env={**os.environ, "KIMBOX_HOME": str(paths.home())})


def _has_work() -> bool:
    """Whether a machine has a life.json, or a notification waits. Imports nothing."""
    try:
        home = paths.home()
        return any((home / "spool").glob("*.json")) or any(paths.machines_dir().glob("[!.]*/life.json"))
    except OSError:
        return False
