"""A timer of the user's systemd that runs `kimbox expire`, as long as a machine has a lifetime or notifications.

Without a systemd for the user, each verb does what is due. Nothing here is an error: a lifetime needs no timer.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from kimbox import paths, run
from kimbox.errors import KimboxError
from kimbox.files import read_bounded, write_atomic
from kimbox.log import log

#: Exists if systemd is the system's manager (sd_booted(3)).
BOOTED = Path("/run/systemd/system")

#: Interval of the timer, as OnCalendar= of systemd.timer(5): by wall clock, also after a sleep of the host.
INTERVAL = "*:0/5"

#: Timeout of systemctl, in seconds.
TIMEOUT_S = 20.0

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
    """Returns the name of the units, which differs for each KIMBOX_HOME."""
    if "KIMBOX_HOME" not in os.environ:
        return "kimbox-expire"
    return f"kimbox-expire-{hashlib.sha256(os.fsencode(paths.home())).hexdigest()[:8]}"


def folder() -> Path:
    """Returns the folder of the user's units (systemd.unit(5))."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "systemd/user"


def install() -> None:
    """Writes and starts the timer, unless it is there, or the user has no systemd."""
    if not _is_available():
        return
    python = _quoted(sys.executable)
    units = {
        f"{name()}.service": _SERVICE.format(python=python, home=_quoted(f"KIMBOX_HOME={paths.home()}")),
        f"{name()}.timer": _TIMER,
    }
    try:
        if all(_has(folder() / unit, text) for unit, text in units.items()):
            return
        for unit, text in units.items():
            write_atomic(folder() / unit, text)
        _systemctl("daemon-reload")
        _systemctl("enable", "--now", f"{name()}.timer")
    except (KimboxError, OSError) as error:
        log.info(f"no timer of systemd runs `kimbox expire`, so each verb does what is due: {error}")


def remove() -> None:
    """Stops and removes the timer, if it is there."""
    if not (folder() / f"{name()}.timer").exists():
        return
    try:
        if _is_available():
            _systemctl("disable", "--now", f"{name()}.timer")
    except KimboxError as error:
        log.info(f"the timer {name()} cannot be stopped: {error}")
    for suffix in ("timer", "service"):
        (folder() / f"{name()}.{suffix}").unlink(missing_ok=True)


def _is_available() -> bool:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return BOOTED.is_dir() and bool(runtime) and Path(runtime or "").is_dir() and run.which("systemctl") is not None


def _systemctl(*words: str) -> None:
    run.run(["systemctl", "--user", "--no-ask-password", *words], timeout_s=TIMEOUT_S)


def _has(path: Path, text: str) -> bool:
    try:
        return read_bounded(path) == text.encode()
    except OSError:
        return False


def _quoted(text: str) -> str:
    """Returns a word for a unit file, as systemd.syntax(7) and the specifiers of systemd.unit(5) need it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
