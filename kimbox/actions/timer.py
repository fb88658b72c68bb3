"""A timer of the user's systemd that runs `kimbox expire`, as long as a machine has a lifetime or notifications.

Without a systemd for the user, each verb does what is due. Nothing here is an error: a lifetime needs no timer.
"""

from __future__ import annotations

import sys

from kimbox import paths
from kimbox.actions.userunits import folder, is_available, is_written, quoted, suffix, systemctl
from kimbox.errors import KimboxError
from kimbox.files import write_atomic
from kimbox.log import log

#: Interval of the timer, as OnCalendar= of systemd.timer(5): by wall clock, also after a sleep of the host.
INTERVAL = "*:0/5"

_SERVICE = """\
# Written by kimbox.
[Unit]
Description=Lifetimes and notifications of kimbox

[Service]
Type=oneshot
Environment={home}
ExecStart={python} -m kimbox --quiet expire
"""

_TIMER = f"""\
# Written by kimbox.
[Unit]
Description=Lifetimes and notifications of kimbox

[Timer]
OnCalendar={INTERVAL}
Persistent=true

[Install]
WantedBy=timers.target
"""


def name() -> str:
    """Returns the name of the units."""
    return f"kimbox-expire{suffix()}"


def install() -> None:
    """Writes and starts the timer, unless it is there, or the user has no systemd."""
    if not is_available():
        return
    python = quoted(sys.executable)
    units = {
        f"{name()}.service": _SERVICE.format(python=python, home=quoted(f"KIMBOX_HOME={paths.home()}")),
        f"{name()}.timer": _TIMER,
    }
    try:
        if all(is_written(folder() / unit, text) for unit, text in units.items()):
            return
        for unit, text in units.items():
            write_atomic(folder() / unit, text)
        systemctl("daemon-reload")
        systemctl("enable", "--now", f"{name()}.timer")
    except (KimboxError, OSError) as error:
        log.info(f"no timer of systemd runs `kimbox expire`, so each verb does what is due: {error}")


def remove() -> None:
    """Stops and removes the timer, if it is there."""
    if not (folder() / f"{name()}.timer").exists():
        return
    try:
        if is_available():
            systemctl("disable", "--now", f"{name()}.timer")
    except KimboxError as error:
        log.info(f"the timer {name()} cannot be stopped: {error}")
    for kind in ("timer", "service"):
        (folder() / f"{name()}.{kind}").unlink(missing_ok=True)
