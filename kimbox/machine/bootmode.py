"""The boot mode of a box, which selects its root: sets it in the disk, reads it, and checks what it allows.

The boot mode is not recorded. Each start writes the mode of the spec and the command line to the disk, and the guest
reports the mode that it booted.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox.errors import ImageError, StateError
from kimbox.image.disk import grubenv, keptroot, nbd
from kimbox.image.disk.grubenv import BLOCK_BYTES, NEXT, SAVED
from kimbox.image.disk.view import DiskView
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.render.guestfiles import DEFAULT
from kimbox.spec.layout import SECTOR_BYTES
from kimbox.spec.model import BootMode, Box

#: Text that `up`, `reload` and `status` print for a box in maintain mode.
MAINTAINED = (
    "MAINTAIN MODE: {name} runs on the real root. Every change is permanent, and each later resnap boot starts from "
    "it. Nothing is provisioned. `kimbox reload {name}` leaves this mode."
)


class NoEnvironment(ImageError):
    """The disk has no environment block at the place where kimbox's boot loader reads it."""

    code = "boot-mode-not-set"


@attrs.frozen
class Choice:
    """The boot mode on the command line. None: the mode of the spec."""

    mode: BootMode | None = None
    #: Only for the next boot. Later boots, also reboots by the guest, use the mode of the spec.
    once: bool = False
    #: Whether this boot must not put back a kept root.
    from_scratch: bool = False
    #: Digest of the manifest that the host delivers at this start: a kept root of another one would not fit. The guest
    #: detects that too, but only when it has booted that root, and restarts.
    manifest: str | None = None


def booted_mode(machine: Machine) -> str | None:
    """Returns the mode that the guest reported at its last boot, or None if it has not reported one."""
    modes = [event.text("mode") for event in machine.boot_events() if event.name == "booting"]
    return modes[-1] if modes else None


def is_maintained(machine: Machine) -> bool:
    """Whether the guest runs on the real root."""
    return booted_mode(machine) == BootMode.MAINTAIN


def check(machine: Machine, state: State, choice: Choice) -> None:
    """Checks that the requested mode takes effect without a restart.

    Raises StateError: `wrong-state` if the machine is paused or suspended, `restart-required` if it runs in another
    mode, and the errors of `refuse_sealed`.
    """
    name, mode = machine.name, choice.mode
    refuse_sealed(machine, choice)
    if mode is None or not (state.running or state is State.SUSPENDED):
        return
    if state in (State.PAUSED, State.SUSPENDED):
        raise StateError(
            f"cannot boot {name} in mode {mode}: the box is {state}, and resumes in its old mode without a boot",
            code="wrong-state",
            hint=f"`kimbox resume {name}`, then `kimbox reload --boot {mode} {name}`",
            fields={"name": name, "mode": mode, "state": state},
        )
    current = booted_mode(machine)
    if current != mode:
        runs = f"runs in mode {current}" if current else "is booting and has not reported its mode yet"
        raise StateError(
            f"{name} {runs}: the mode {mode} requires a restart",
            code="restart-required",
            hint=f"`kimbox reload --boot {mode}{' --once' if choice.once else ''} {name}` restarts it",
            fields={"name": name, "mode": mode, "current": current or ""},
        )


def refuse_sealed(machine: Machine, choice: Choice) -> None:
    """Checks that a mode is allowed for a box that is sealed, or whose unsealing was interrupted.

    Raises StateError: `unseal-interrupted` if an interrupted unsealing must first complete in maintain mode,
    `box-sealed` if a sealed box would boot its real root.
    """
    is_maintain = choice.mode is BootMode.MAINTAIN
    if machine.unseal_mark.exists():
        if not is_maintain:
            raise StateError(
                f"unsealing of {machine.name} was interrupted after its credentials were destroyed",
                code="unseal-interrupted",
                hint=f"`kimbox secure --unseal {machine.name}` completes it",
                fields={"name": machine.name},
            )
        return
    if is_maintain and machine.exists and (sealed := machine.record().sealed):
        raise StateError(
            f"{machine.name} is sealed as {sealed.role} of {sealed.site}: a sealed box has no maintain mode",
            code="box-sealed",
            hint=f"`kimbox secure --unseal {machine.name}` destroys its credentials and opens it",
            fields={"name": machine.name, "role": sealed.role, "site": sealed.site},
        )


def refuse_kept_root(box: Box, choice: Choice) -> None:
    """Raises StateError (`keep-not-allowed`) if a sealed box would boot keep, and its spec does not allow that."""
    of_spec = box.boot_mode(is_sealed=True)
    if BootMode.KEEP not in (choice.mode or of_spec, of_spec if choice.once else None):
        return
    if box.secure is None or not box.secure.keep:
        raise StateError(
            f"{box.name} cannot boot keep as a sealed box: a restart from inside would keep what an intruder changed",
            code="keep-not-allowed",
            hint="use `boot: resnap`, or add `secure: {keep: true}` to the spec",
            fields={"name": box.name, "mode": str(BootMode.KEEP)},
        )


def choose(machine: Machine, mode: BootMode, choice: Choice) -> None:
    """Sets the mode of the next boots of a machine that does not run. `mode` is the mode of the spec.

    The mode cannot be set on a disk that kimbox has not made. Raises NoEnvironment then, if the command line has a mode
    or the mode of the spec is not the default.
    """
    if BootMode.RESNAP in (choice.mode or mode, mode) and (choice.from_scratch or choice.manifest):
        _end_other_kept(machine, choice)
    saved, once = (mode, choice.mode) if choice.once else (choice.mode or mode, None)
    try:
        if set_entries(machine, saved, once):
            log.detail(f"the disk of {machine.name} boots {once or saved}" + (f", then {saved}" if once else ""))
    except NoEnvironment as error:
        if choice.mode or mode is not DEFAULT:
            raise
        log.detail(error.message)


def set_entries(machine: Machine, saved: BootMode, once: BootMode | None = None) -> bool:
    """Sets the mode of all later boots in the disk. With `once`, the next boot alone has that mode.

    The machine must not run, and have no saved state. Returns whether the disk was written: if the block has these
    values already, it is not. Raises NoEnvironment if the disk has no environment block of kimbox, ImageError if the
    disk cannot be opened or written.
    """
    with nbd.opened(machine.disk, "qcow2") as disk:
        offset, block = _find(disk, machine.name)
    current = grubenv.values(block)
    if current is None:
        log.warn(f"GRUB's environment in the disk of {machine.name} is damaged: kimbox writes a new one")
    elif (current.get(SAVED), current.get(NEXT, b"")) == (saved.encode(), once.encode() if once else b""):
        return False
    new = grubenv.changed(block, {SAVED: saved.encode(), NEXT: once.encode() if once else None})
    with nbd.opened(machine.disk, "qcow2", writable=True) as disk:
        disk.write(offset, new)
        disk.flush()
        if disk.read(offset, BLOCK_BYTES) != new:
            raise ImageError(
                f"the boot mode was not written to the disk of {machine.name}: the disk returns other data",
                code="boot-mode-not-set",
                fields={"name": machine.name, "path": str(machine.disk)},
            )
    return True


def _end_other_kept(machine: Machine, choice: Choice) -> None:
    """Ends what a box keeps, if the choice requires it. Raises the errors of `end_kept` for --from-scratch."""
    try:
        if end_kept(machine, unless=None if choice.from_scratch else choice.manifest):
            log.detail(f"the disk of {machine.name} no longer has a kept root")
    except ImageError as error:
        if choice.from_scratch:
            raise
        log.detail(error.message)


def end_kept(machine: Machine, *, unless: str | None = None) -> bool:
    """Ends what a box keeps for its next resnap boots. The machine must not run. Returns whether it did.

    What is kept of the manifest with the digest `unless` stays, whatever commit of a followed branch it has. Raises
    ImageError if the disk cannot be opened or written, or does not have the layout of kimbox's images.
    """
    with nbd.opened(machine.disk, "qcow2") as disk:
        volume = DiskView.of(disk.read, disk.size_bytes).kept
        name = keptroot.manifest(volume.read) if volume else ""
        if volume is None or not name or name.split("-")[0] == unless:
            return False
        ((start, end),) = volume.on_disk([(0, SECTOR_BYTES)])
    with nbd.opened(machine.disk, "qcow2", writable=True) as disk:
        disk.write(start, bytes(end - start))
        disk.flush()
    return True


def read_entries(machine: Machine) -> tuple[str, str]:
    """Returns the mode of all boots and the mode of the next boot alone, as the disk has them; "" if it has none.

    Raises NoEnvironment if the disk has no environment block of kimbox, ImageError if the disk cannot be opened.
    """
    with nbd.opened(machine.disk, "qcow2") as disk:
        _, block = _find(disk, machine.name)
    values = grubenv.values(block) or {}
    return values.get(SAVED, b"").decode("ascii", "replace"), values.get(NEXT, b"").decode("ascii", "replace")


def has_environment(disk_file: Path, name: str) -> bool:
    """Whether a qcow2 that no process uses has an environment of GRUB at the place where images of kimbox have it.

    `name` is the machine. Raises ImageError if the disk cannot be opened.
    """
    with nbd.opened(disk_file, "qcow2") as disk:
        try:
            _find(disk, name)
        except NoEnvironment:
            return False
    return True


def _find(disk: nbd.Disk, name: str) -> tuple[int, bytes]:
    """Returns offset and content of the environment block in a disk. `name` is the machine. Raises NoEnvironment."""
    try:
        offset = grubenv.place_for_boot_loader(DiskView.of(disk.read, disk.size_bytes))
        return offset, disk.read(offset, BLOCK_BYTES)
    except ImageError as error:
        raise NoEnvironment(
            f"the disk of {name} has no environment of GRUB that kimbox can set: {error.message}",
            hint="boot modes (`boot:` in the spec, --boot) require an image that kimbox built, with an intact /boot; "
            f"`kimbox destroy {name}` and `kimbox up {name}` create a new disk",
            fields={"name": name},
        ) from None


def refuse_to_provision(machine: Machine) -> None:
    """Raises StateError (`maintain-mode`) in maintain mode, because all changes would become part of the real root."""
    if is_maintained(machine):
        raise StateError(
            f"cannot provision {machine.name}: it runs in maintain mode, and the provisioned files would become part "
            "of the real root",
            code="maintain-mode",
            hint=f"`kimbox reload {machine.name}` leaves maintain mode",
            fields={"name": machine.name},
        )
