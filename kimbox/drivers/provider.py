"""Who runs machines: the Provider protocol, and `qemu`, the one that needs nothing but QEMU. vagrant.py has the other.

A provider knows how a machine is made, started, ended and looked at. It knows neither manifests nor locks, and decides
nothing: what a verb means in which state is life.py's and stop.py's business, and the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from kimbox.drivers.qemu import process
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.guest.endpoint import Endpoint
from kimbox.log import log
from kimbox.machine import ports
from kimbox.machine.console import CONSOLE_BYTES, snapshot_is_full
from kimbox.machine.folder import Ended, Machine, Record, read_end
from kimbox.machine.state import Facts, State
from kimbox.spec.model import BootMode, Box

if TYPE_CHECKING:
    from kimbox.image.store.images import Image
    from kimbox.machine.bootmode import Choice

#: QMP's words for vCPUs that stand still until somebody lets them go on; io-error: the host's disk is full.
STANDING_STILL = frozenset({"paused", "suspended", "postmigrate", "save-vm", "io-error", "internal-error"})

#: The kernel's last words when a guest has shut down by itself; it says them however quiet it is.
GOODBYES = (b"reboot: Power down", b"reboot: System halted")

#: They stand within so much of the end of the console.
GOODBYE_BYTES = 1024

#: Ports are chosen again so often, if another program takes one before QEMU does.
PORT_TRIES = 3


@attrs.frozen
class Launch:
    """What a machine is started with; `box` is None where only the record is known."""

    record: Record
    box: Box | None
    cpus: int
    memory_bytes: int
    #: Go on from the saved state instead of booting.
    resume: bool = False


class Provider(Protocol):
    """One machine, in the hands of who runs it. All raise KimboxError, in the words of the program behind it."""

    #: As `--provider` has it.
    name: str

    def prepare(self, box: Box, image: Image) -> None:
        """Makes of an image what its machines start from, if that is not there yet; it may take minutes."""

    def create(self, folder: Path, box: Box, image: Image) -> None:
        """Puts into the folder of a new machine, which becomes the machine's own, what it starts from."""

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        """Sets the root of the next boots of a machine that does not run: `mode` is the spec's."""

    def start(self, launch: Launch) -> Record:
        """Starts the machine; returns the record with its ports and address. It is written before there is a guest."""

    def unpause(self) -> None:
        """Lets a guest go on that stands still."""

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        """Shuts a running guest down; where it does not in time, or with `force`, pulls the plug."""

    def suspend(self, written: Callable[[], None]) -> None:
        """Saves the whole state of a running guest, calls `written`, and ends it."""

    def forget_suspended(self) -> None:
        """Removes the saved state of a machine that has woken from it."""

    def drop_suspended(self) -> None:
        """Removes the saved state of a machine that does not run."""

    def tidy(self) -> None:
        """Removes what only a running machine needs."""

    def destroy(self) -> None:
        """Ends and removes the machine with everything of it, whole or half-made."""

    def readable_disk(self, image: Image, work: Path) -> Path:
        """The disk of a machine that does not run, for reading: a qcow2 on `image`, or a copy of one in `work`."""

    def endpoint(self, record: Record) -> Endpoint:
        """How ssh reaches the guest."""

    def facts(self, record: Record) -> Facts:
        """What is true of the machine just now. Takes no lock."""

    def listen(self) -> bool:
        """Brings in what the guest has told and written since; whether it runs."""

    def save_snapshot(self, name: str) -> None:
        """Saves disks and, where it runs, memory, under a name that is not there."""

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        """Goes back to a snapshot: `launch` has the record of then. Returns it with the ports and address of now."""

    def delete_snapshot(self, name: str) -> None:
        """Removes a snapshot that is there."""


#: What `--provider` may say; the first is the default.
NAMES = ("qemu", "vagrant")


def of(machine: Machine) -> Provider:
    """The provider of a machine, by what lies in its folder, however damaged that is."""
    return named("vagrant" if machine.vagrantfile.exists() else NAMES[0], machine)


def named(name: str, machine: Machine) -> Provider:
    """A provider by its name. Raises UsageError for one that is not known."""
    if name == "qemu":
        return Qemu(machine)
    if name != "vagrant":
        raise UsageError(f"there is no provider {name[:100]}", hint=f"it is one of {', '.join(NAMES)}")
    from kimbox.drivers.vagrant.driver import Vagrant

    return Vagrant(machine)


def need_disk(machine: Machine, verb: str) -> None:
    """Raises StateError where the disk of a machine is not kimbox's to work on, but its hypervisor's."""
    if (name := of(machine).name) != NAMES[0]:
        hint = f"`kimbox up` without --provider, of a box made anew, has one that kimbox can {verb}"
        raise StateError(f"cannot {verb} {machine.name}: {name} has its disk", hint=hint)


def wanted_ports(box: Box) -> dict[int, int | None]:
    """Port of the guest -> port of the host, None where kimbox chooses."""
    return {22: None, **{forward.guest: forward.host for forward in box.forwards}}


def allot_ports(machine: Machine, record: Record, box: Box | None) -> Record:
    """The record with ports of the host that are free now; it is written. Without a spec, those it had, if they are."""
    last = {22: record.ssh_port} | record.forwards
    with ports.allotting():
        chosen = ports.choose(machine, wanted_ports(box) if box else dict.fromkeys(last), last)
        for guest in [guest for guest in chosen if not box and chosen[guest] != last[guest]]:
            log.warn(f"port {last[guest]} of this host is taken: port {guest} of {machine.name} is at {chosen[guest]}")
        record = attrs.evolve(record, ssh_port=chosen.pop(22), forwards=chosen)
        machine.write_record(record)
    return record


@attrs.frozen
class Qemu:
    """The provider `qemu`: no root, no daemon, user networking. What it does to the process is in qemu.py."""

    machine: Machine
    name = "qemu"

    def prepare(self, box: Box, image: Image) -> None:
        """An overlay on the image is all it takes."""

    def create(self, folder: Path, box: Box, image: Image) -> None:
        size_bytes = max(box.disk.size_bytes, image.virtual_bytes)
        process.create_disk(folder / self.machine.disk.name, image.disk, image.format, size_bytes)

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        from kimbox.machine import bootmode

        bootmode.choose(self.machine, mode, choice)

    def start(self, launch: Launch) -> Record:
        return self._start(launch, process.SUSPENDED_TAG if launch.resume else None)

    def _start(self, launch: Launch, tag: str | None) -> Record:
        """Starts from a state in the disk, if there is a tag, else boots."""
        from kimbox.drivers import accelerator

        accelerated = accelerator.find()
        if accelerated.name != "kvm":
            log.detail(f"no KVM ({accelerated.why}): the guest is emulated, some ten times slower")
        record = launch.record
        for left in reversed(range(PORT_TRIES)):
            record = allot_ports(self.machine, record, launch.box)
            one = process.Launch(self.machine, record, launch.cpus, launch.memory_bytes, accelerated, record.scratch)
            try:
                process.start(attrs.evolve(one, resume=tag is not None, tag=tag or process.SUSPENDED_TAG))
                break
            except process.PortTakenError:
                if not left:
                    raise
                log.detail("another program has taken a port meanwhile: others are chosen")
        return record

    def unpause(self) -> None:
        process.unpause(self.machine)

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        if force or not self._shut_down(before, timeout_s):
            process.kill(self.machine)

    def _shut_down(self, before: State, timeout_s: float) -> bool:
        """Presses the power button; True if the box is gone in time."""
        name = self.machine.name
        try:
            if before is State.PAUSED:
                process.unpause(self.machine)
            if process.power_off(self.machine, timeout_s):
                return True
            log.warn(f"{name} did not shut down within {timeout_s:.0f} s: pulling the plug")
        except KimboxError as error:
            log.warn(f"{name} cannot be asked to shut down ({error}): pulling the plug")
        return False

    def suspend(self, written: Callable[[], None]) -> None:
        process.suspend(self.machine)
        written()  # before the end: it must not be forgotten
        process.kill(self.machine)
        process.sweep(self.machine)

    def forget_suspended(self) -> None:
        process.forget_suspended(self.machine)

    def drop_suspended(self) -> None:
        process.drop_suspended(self.machine)

    def tidy(self) -> None:
        process.sweep(self.machine)
        process.drop_scratch(self.machine)
        self.machine.rotate_file.unlink(missing_ok=True)  # an interrupted `secure --rotate` left it

    def destroy(self) -> None:
        if self.machine.running:
            process.kill(self.machine)
        process.remove(self.machine)

    def readable_disk(self, image: Image, work: Path) -> Path:
        return self.machine.disk

    def endpoint(self, record: Record) -> Endpoint:
        return self.machine.endpoint(record)

    def facts(self, record: Record) -> Facts:
        machine = self.machine
        running = machine.running
        end = read_end(machine.serial_log, GOODBYE_BYTES)
        return Facts(
            exists=True,
            running=running,
            paused=running and process.status(machine) in STANDING_STILL,
            suspended=record.ended is Ended.SUSPENDED,
            events=machine.boot_events(),
            ended_by_us=record.ended is not None,
            shut_down=any(goodbye in end for goodbye in GOODBYES),
            snapshot_full=running and snapshot_is_full(read_end(machine.serial_log, CONSOLE_BYTES)),
        )

    def listen(self) -> bool:
        return self.machine.running

    def save_snapshot(self, name: str) -> None:
        process.save_snapshot(self.machine, name)

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        if self.machine.running:
            process.kill(self.machine)
        self.tidy()
        if launch.record.ended is None:
            return self._start(launch, process.snapshot_tag(name))
        process.revert(self.machine, name)
        return launch.record

    def delete_snapshot(self, name: str) -> None:
        process.delete_snapshot(self.machine, name)
