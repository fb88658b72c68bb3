"""cloud-init in a guest, as the host sees it: the host key on the console, and the end of its work over ssh."""

from __future__ import annotations

import re

from kimbox.errors import GuestError
from kimbox.guest.events import printable
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.run import tail

#: Lines between which cloud-init writes the public host keys to the console.
BEGIN, END = b"-----BEGIN SSH HOST KEY KEYS-----", b"-----END SSH HOST KEY KEYS-----"

#: Exit status of `cloud-init status` in these states; and of the shell if there is no cloud-init.
DONE, DEGRADED, NOT_FOUND = 0, 2, 127

#: Maximum length of its report that is shown, in characters.
MAX_REPORT = 2000

_KEY = re.compile(rb"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}(?![A-Za-z0-9+/])")


def host_key(console: bytes) -> str | None:
    """Returns the ed25519 host key that cloud-init has written to a console last; None if there is none.

    The text before a key in its line is ignored: journald may have written the line, too. Only root in the guest and
    its kernel write to the console.
    """
    start = console.rfind(BEGIN)
    end = console.find(END, max(start, 0))
    if start < 0 or end < 0:
        return None
    found = _KEY.search(console, start, end)
    return found[0].decode() if found else None


def wait_until_done(guest: Guest, name: str, timeout_s: float) -> None:
    """Waits until cloud-init has ended in the guest of the machine `name`. Errors that it got over are a warning.

    Raises GuestError: `cloud-init-failed` with what it reports, and those of `Guest.run`.
    """
    log.now("waiting for cloud-init")
    answer = guest.run("cloud-init status --wait --long", timeout_s=timeout_s)
    if answer.code == NOT_FOUND:
        log.detail(f"{name} has no cloud-init, and accepts the key")
        return
    report = printable(tail(answer.stdout.lstrip(".\n") + answer.stderr))[:MAX_REPORT]
    if answer.code == DEGRADED:
        log.warn(f"cloud-init in {name} reports errors from which it recovered: {report}")
    elif answer.code != DONE:
        raise GuestError(
            f"cloud-init in {name} has failed (exit status {answer.code}):\n{report}",
            code="cloud-init-failed",
            hint=f"`kimbox ssh {name}` opens a shell in it: see /var/log/cloud-init.log; `kimbox logs --serial {name}` "
            "shows the console",
            fields={"name": name, "exit_status": str(answer.code)},
        )
