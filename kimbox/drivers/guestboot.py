"""The boot mode of a machine whose disk this host cannot write: the file of the next mode, and its way into the guest.

kimbox writes the chosen mode to a file in the machine's folder. When the guest runs, kimbox sets its boot entry over
ssh. If the guest runs in another mode, it must reboot.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kimbox.errors import GuestError
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Guest
from kimbox.machine.folder import Machine
from kimbox.spec.model import BootMode

if TYPE_CHECKING:
    from kimbox.machine.bootmode import Choice


def _file(machine: Machine) -> Path:
    return machine.folder / "boot"


def choose(machine: Machine, mode: BootMode, choice: Choice) -> None:
    """Writes the modes of the next boots. `mode` is that of the spec."""
    once = choice.mode if choice.once else None
    saved = mode if choice.once else choice.mode or mode
    _file(machine).write_text(f"{saved} {once or ''}\n")


def needs_reboot(machine: Machine, endpoint: Endpoint, *, is_new: bool) -> bool:
    """Sets the boot mode in the guest. Returns True if the guest must reboot, because it runs in another mode.

    A new machine has a new snapshot anyway. Raises GuestError (`boot-mode-not-set`).
    """
    file = _file(machine)
    saved, once = file.read_text().rstrip("\n").split(" ") if file.exists() else ("", "")
    if not saved:
        return False
    script = (
        "systemctl start boot.mount && read -r mode </run/kimbox/mode; printf '%s\\n' \"$mode\"; "
        f"grub-editenv /boot/grub/grubenv set saved_entry={saved}"
    )
    booted = _sudo(machine, endpoint, script).strip()
    mode = once or saved
    if booted == mode or (is_new and mode == BootMode.RESNAP):
        file.unlink()
        return False
    _sudo(machine, endpoint, f"grub-editenv /boot/grub/grubenv set next_entry={mode}; sync")
    return True


def rebooted(machine: Machine) -> None:
    """Removes the file. Not earlier: the next start reads it after an interruption."""
    _file(machine).unlink()


def _sudo(machine: Machine, endpoint: Endpoint, script: str) -> str:
    """Runs a shell script as root in the guest and returns its output. Raises GuestError (`boot-mode-not-set`)."""
    with Guest(endpoint) as guest:
        answer = guest.run(f"sudo -n sh -c {shlex.quote(script)}", timeout_s=60)
    if answer.code != 0:
        raise GuestError(
            f"the boot mode of {machine.name} cannot be set: {answer.stderr.strip()[:500]}",
            code="boot-mode-not-set",
            fields={"name": machine.name},
        )
    return answer.stdout
