"""Units of the user's systemd: whether there is one, where its files are, and systemctl."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kimbox import paths, run
from kimbox.files import read_bounded

#: Exists if systemd is the system's manager (sd_booted(3)).
BOOTED = Path("/run/systemd/system")

#: Timeout of systemctl, in seconds.
TIMEOUT_S = 20.0


def folder() -> Path:
    """Returns the folder of the user's units (systemd.unit(5))."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "systemd/user"


def is_available() -> bool:
    """Whether the user of this process has a systemd."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return BOOTED.is_dir() and bool(runtime) and Path(runtime or "").is_dir() and run.which("systemctl") is not None


def systemctl(*words: str, timeout_s: float = TIMEOUT_S) -> str:
    """Runs systemctl for the user's systemd and returns its output. Raises CommandError."""
    return run.run(["systemctl", "--user", "--no-ask-password", *words], timeout_s=timeout_s).stdout


def suffix() -> str:
    """Returns the end of the names of units, which differs for each KIMBOX_HOME; nothing for the usual one."""
    if "KIMBOX_HOME" not in os.environ:
        return ""
    return f"-{hashlib.sha256(os.fsencode(paths.home())).hexdigest()[:8]}"


def is_written(path: Path, text: str) -> bool:
    """Whether a file has this text."""
    try:
        return read_bounded(path) == text.encode()
    except OSError:
        return False


def quoted(text: str) -> str:
    """Returns a word for a unit file, as systemd.syntax(7) and the specifiers of systemd.unit(5) need it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
