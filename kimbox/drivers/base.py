"""What every driver has: the protocol `Driver`, what it can do (`Features`), and a start (`Launch`).

A driver creates, starts, stops and observes one machine. It knows neither manifests nor locks. What a verb does in
which state is decided in kimbox/actions, once for all drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from kimbox.drivers.hostcheck import HostCheck
from kimbox.guest.endpoint import Endpoint
from kimbox.log import log
from kimbox.machine import ports
from kimbox.machine.console import CONSOLE_BYTES, snapshot_is_full
from kimbox.machine.folder import Machine, read_end
from kimbox.machine.record import Ended, Record
from kimbox.machine.state import Observation, State
from kimbox.spec.model import BootMode, Box

if TYPE_CHECKING:
    from kimbox.image.store.images import Image
    from kimbox.machine.bootmode import Choice

#: The guest's port for ssh.
SSH_PORT = 22

#: The last lines of Linux on the console when the guest has shut down, at any log level.
SHUTDOWN_LINES = (b"reboot: Power down", b"reboot: System halted")

#: SHUTDOWN_LINES are searched for in this many bytes at the end of the console.
SHUTDOWN_BYTES = 1024


@attrs.frozen
class Features:
    """What a driver can do. A verb asks these, never the name of a driver. All are off unless the driver says so."""

    #: The disk is a qcow2 file of kimbox, `Machine.disk`. While the machine is halted, kimbox may read and replace it.
    own_disk: bool = False
    #: A sealed box gets its data key and new credentials at each start, where no command line shows them.
    sealing: bool = False
    #: The memory can be saved and the machine ended, so that it resumes later.
    suspend: bool = False
    #: A snapshot of a running machine holds its memory.
    memory_snapshots: bool = False


@attrs.frozen
class Launch:
    """What a machine is started with. `box` is None where only the record is known."""

    record: Record
    box: Box | None
    cpus: int
    memory_bytes: int
    #: Resume from the saved state instead of booting.
    resume: bool = False


class Driver(Protocol):
    """Runs one machine. Every method raises KimboxError with the message of the program that failed."""

    #: The value of the option `--provider`.
    @property
    def name(self) -> str: ...

    @property
    def features(self) -> Features: ...

    def prepare(self, box: Box, image: Image) -> None:
        """Converts an image to the form that machines start from, unless that exists. It may take minutes."""

    def create(self, folder: Path, box: Box, image: Image) -> None:
        """Writes the disk, or what the disk is made from, to the folder that becomes the folder of a new machine."""

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        """Sets the root of the next boots of a machine that does not run. `mode` is the mode of the spec."""

    def start(self, launch: Launch) -> Record:
        """Starts the machine; returns the record with its ports and address, which is on disk before the guest runs."""

    def unpause(self) -> None:
        """Continues a guest whose processors are stopped."""

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        """Shuts a running guest down. Powers it off where that takes longer than `timeout_s`, or with `force`."""

    def suspend(self, written: Callable[[], None]) -> None:
        """Saves the whole state of a running guest, calls `written`, and ends the guest."""

    def forget_suspended(self) -> None:
        """Removes the saved state of a machine that has resumed."""

    def drop_suspended(self) -> None:
        """Removes the saved state of a machine that does not run."""

    def tidy(self) -> None:
        """Removes what only a running machine needs."""

    def destroy(self) -> None:
        """Ends the machine and removes all of it, also where it is incomplete."""

    def wait_until_gone(self, timeout_s: float) -> bool:
        """Waits for the guest to end by itself; True if it did within the timeout."""

    def readable_disk(self, image: Image, work: Path) -> Path:
        """The disk of a machine that does not run, for reading: a qcow2 on `image`, or a copy of one in `work`."""

    def endpoint(self, record: Record) -> Endpoint:
        """How ssh reaches the guest."""

    def observe(self, record: Record) -> Observation:
        """What is true of the machine now. Takes no lock."""

    def listen(self) -> bool:
        """Copies new events and output of the guest to the machine's folder; True if the guest runs."""

    def pid(self) -> int | None:
        """The process on this host that runs the guest; None if there is none, or if it is not a child of kimbox."""

    def save_snapshot(self, name: str) -> None:
        """Saves the disks and, where it runs, the memory. There is no snapshot of that name yet."""

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        """Goes back to a snapshot, whose record is in `launch`. Returns it with the ports and address of now."""

    def delete_snapshot(self, name: str) -> None:
        """Removes a snapshot that exists."""

    def disk_snapshots(self) -> list[str]:
        """Names of the snapshots that the disk of a machine holds, which does not run. A saved state is not one."""


class DriverType(Protocol):
    """The class of a driver: what is known before there is a machine."""

    @property
    def features(self) -> Features: ...

    def __call__(self, machine: Machine) -> Driver:
        """The driver of one machine. Making it touches nothing."""

    def check_host(self) -> list[HostCheck]:
        """What this host has and lacks to run machines with this driver. Raises nothing: a failure is a result."""


def host_ports(box: Box) -> dict[int, int | None]:
    """Port of the guest -> port of the host that the spec names; None where kimbox chooses."""
    return {SSH_PORT: None, **{forward.guest: forward.host for forward in box.forwards}}


def allot_ports(machine: Machine, record: Record, box: Box | None) -> Record:
    """Writes and returns the record with ports of the host that are free now: those it had, where they are free.

    Without a spec (`box` is None) the record says which ports of the guest are forwarded.
    """
    last = {SSH_PORT: record.ssh_port} | record.forwards
    with ports.allotting():
        chosen = ports.choose(machine, host_ports(box) if box else dict.fromkeys(last), last)
        for guest in [guest for guest in chosen if not box and chosen[guest] != last[guest]]:
            log.warn(f"port {last[guest]} of this host is taken: port {guest} of {machine.name} is at {chosen[guest]}")
        record = attrs.evolve(record, ssh_port=chosen.pop(SSH_PORT), forwards=chosen)
        machine.write_record(record)
    return record


def observe_folder(machine: Machine, record: Record, *, running: bool, paused: bool) -> Observation:
    """The observation of a machine whose driver writes the console and the events to files in the machine's folder."""
    end = read_end(machine.serial_log, SHUTDOWN_BYTES)
    return Observation(
        exists=True,
        running=running,
        paused=paused,
        suspended=record.ended is Ended.SUSPENDED,
        events=machine.boot_events(),
        ended_by_us=record.ended is not None,
        shut_down=any(line in end for line in SHUTDOWN_LINES),
        snapshot_full=running and snapshot_is_full(read_end(machine.serial_log, CONSOLE_BYTES)),
    )
