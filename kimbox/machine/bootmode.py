"""Which root a box boots: what a start sets, what a running box has, and what follows from maintain mode.

Nothing of it is recorded: each start writes what spec and command line say into the disk, and the guest tells what it
really booted.
"""

from __future__ import annotations

import attrs

from kimbox.errors import ImageError, StateError
from kimbox.image.disk import grubenv
from kimbox.image.disk.grubenv import BLOCK_BYTES, NEXT, SAVED
from kimbox.image.disk.view import DiskView
from kimbox.image.formats import nbd
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.render.guestfiles import DEFAULT
from kimbox.spec.model import BootMode

#: What `up`, `reload` and `status` say of a box in maintain mode.
MAINTAINED = (
    "MAINTAIN MODE: {name} runs on the real root. What is changed there stays, and every later resnap boot starts from "
    "it. Nothing is provisioned. `kimbox reload {name}` leaves this mode."
)


class NoEnvironment(ImageError):
    """The disk has no environment block where kimbox's boot loader would read one."""


@attrs.frozen
class Choice:
    """The mode that a command line asks for; without one the spec's."""

    mode: BootMode | None = None
    #: For one boot: later ones, the guest's own reboots too, have the spec's.
    once: bool = False


def booted(machine: Machine) -> str | None:
    """The mode that the guest told it has booted in, if it has."""
    told = [event.text("mode") for event in machine.boot_events() if event.name == "booting"]
    return told[-1] if told else None


def is_maintained(machine: Machine) -> bool:
    """Whether the guest runs on the real root."""
    return booted(machine) == BootMode.MAINTAIN


def check(machine: Machine, state: State, choice: Choice) -> None:
    """Raises StateError, saying what to do, where another mode is asked for than a box can have that is not started."""
    name, mode = machine.name, choice.mode
    refuse_sealed(machine, choice)
    if mode is None or not (state.running or state is State.SUSPENDED):
        return
    if state in (State.PAUSED, State.SUSPENDED):
        raise StateError(
            f"cannot boot {name} in mode {mode}: the box is {state}, and would go on where it stood",
            hint=f"`kimbox resume {name}`, then `kimbox reload --boot {mode} {name}`",
        )
    now = booted(machine)
    if now != mode:
        runs = f"runs in mode {now}" if now else "is booting and has not told its mode yet"
        hint = f"`kimbox reload --boot {mode}{' --once' if choice.once else ''} {name}` restarts it"
        raise StateError(f"{name} {runs}: another mode, {mode}, takes a restart", hint=hint)


def refuse_sealed(machine: Machine, choice: Choice) -> None:
    """Raises StateError where a sealed box would boot its real root, or one that is being opened would boot another."""
    is_maintain = choice.mode is BootMode.MAINTAIN
    if machine.unseal_mark.exists():
        if not is_maintain:
            hint = f"`kimbox secure --unseal {machine.name}` goes on"
            raise StateError(
                f"{machine.name} was being opened, which was interrupted: its credentials are gone", hint=hint
            )
        return
    if is_maintain and machine.exists and (sealed := machine.record().sealed):
        hint = f"`kimbox secure --unseal {machine.name}` opens it without its credentials"
        raise StateError(
            f"{machine.name} is sealed as {sealed.role} of {sealed.site}: it has no maintain mode", hint=hint
        )


def choose(machine: Machine, mode: BootMode, choice: Choice) -> None:
    """Sets what the next boots of a machine that does not run are to be; `mode` is the spec's.

    A disk of somebody else's boots what it boots: that is an error only where another mode than the default is asked
    for, by the spec or the command line. Raises NoEnvironment then.
    """
    saved, once = (mode, choice.mode) if choice.once else (choice.mode or mode, None)
    try:
        if set_entries(machine, saved, once):
            log.detail(f"the disk of {machine.name} boots {once or saved}" + (f", then {saved}" if once else ""))
    except NoEnvironment as error:
        if choice.mode or mode is not DEFAULT:
            raise
        log.detail(error.message)


def set_entries(machine: Machine, saved: BootMode, once: BootMode | None = None) -> bool:
    """Sets the mode of every boot from the next one on, and, with `once`, another for the next alone.

    The machine does not run, and has no saved state. Returns whether the disk was written: it is not where the block
    has these values already. Raises NoEnvironment if the disk has no block of kimbox's, ImageError if it cannot be
    opened or written.
    """
    with nbd.opened(machine.disk, "qcow2") as disk:
        offset, block = _find(disk, machine.name)
    now = grubenv.values(block)
    if now is None:
        log.warn(f"GRUB's environment in the disk of {machine.name} was damaged: it is made anew")
    elif (now.get(SAVED), now.get(NEXT, b"")) == (saved.encode(), once.encode() if once else b""):
        return False
    new = grubenv.changed(block, {SAVED: saved.encode(), NEXT: once.encode() if once else None})
    with nbd.opened(machine.disk, "qcow2", writable=True) as disk:
        disk.write(offset, new)
        disk.flush()
        if disk.read(offset, BLOCK_BYTES) != new:
            raise ImageError(
                f"the boot mode cannot be written into the disk of {machine.name}: it reads back otherwise"
            )
    return True


def entries(machine: Machine) -> tuple[str, str]:
    """The mode that the disk of a machine says for every boot, and that for the next alone; empty where it says none.

    Raises NoEnvironment if the disk has no block of kimbox's, ImageError if it cannot be opened.
    """
    with nbd.opened(machine.disk, "qcow2") as disk:
        _, block = _find(disk, machine.name)
    found = grubenv.values(block) or {}
    return found.get(SAVED, b"").decode("ascii", "replace"), found.get(NEXT, b"").decode("ascii", "replace")


def _find(disk: nbd.Disk, name: str) -> tuple[int, bytes]:
    """Offset and content of the environment block in the disk of the machine of that name. Raises NoEnvironment."""
    try:
        offset = grubenv.place_for_boot_loader(DiskView.of(disk.read, disk.size_bytes))
        return offset, disk.read(offset, BLOCK_BYTES)
    except ImageError as error:
        raise NoEnvironment(
            f"the disk of {name} has no environment of GRUB that kimbox can set: {error.message}",
            hint="boot modes (`boot:` in the spec, --boot) need an image of kimbox's with a sound /boot; "
            f"`kimbox destroy {name}` and `kimbox up` make the disk anew",
        ) from None


def refuse_to_provision(machine: Machine) -> None:
    """Raises StateError in maintain mode."""
    if is_maintained(machine):
        raise StateError(
            f"cannot provision {machine.name}: it runs in maintain mode, and what is provisioned would become part of "
            "the real root",
            hint=f"`kimbox reload {machine.name}` leaves maintain mode",
        )
