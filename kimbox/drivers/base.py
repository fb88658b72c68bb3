"""The protocol of all drivers (`Driver`), the record of what one can do (`Features`), and of a start (`Launch`).

A driver creates, starts, stops and observes one machine. It uses no manifest and no lock. kimbox/actions decides what a
verb does in each state, for all drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from kimbox.drivers.hostcheck import HostCheck
from kimbox.files import read_end
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.guest.endpoint import Endpoint
from kimbox.log import log
from kimbox.machine import ports
from kimbox.machine.console import CONSOLE_BYTES, snapshot_is_full
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record
from kimbox.machine.state import Observation, State
from kimbox.spec.model import SSH_PORT, BootMode, Box

if TYPE_CHECKING:
    from kimbox.image.store.images import Image
    from kimbox.machine.bootmode import Choice

#: The last lines of Linux on the console when the guest has shut down, at any log level.
SHUTDOWN_LINES = (b"reboot: Power down", b"reboot: System halted")

#: SHUTDOWN_LINES are searched for in this many bytes at the end of the console.
SHUTDOWN_BYTES = 1024


@attrs.frozen
class Features:
    """What a driver can do. A verb checks these, never the name of a driver. Each is off by default."""

    #: The disk is a qcow2 file of kimbox, `Machine.disk`. While the machine is halted, kimbox may read and replace it.
    own_disk: bool = False
    #: A sealed box gets its data key and new credentials at each start, where no command line shows them.
    sealing: bool = False
    #: The driver can save the memory and end the process of the machine, which resumes later.
    suspend: bool = False
    #: A snapshot of a running machine holds its memory.
    memory_snapshots: bool = False
    #: The guest gets `Machine.job_disk` as a disk, and runs the job on it (`Launch.job`).
    jobs: bool = False
    #: At its start the guest gets `Machine.delivery`, if it exists, as a read-only disk.
    delivery_disk: bool = False
    #: The guest gets secret values at its start (`Launch.secrets`), which no file and no command line has.
    secrets: bool = False
    #: The guest gets secret values over ssh after each boot: nothing else between host and guest is private.
    secrets_by_ssh: bool = False
    #: A running machine can be made into a template, and clones continue from it.
    templates: bool = False
    #: The machine is one process of this user, which writes its id to `Machine.pid_file`.
    own_process: bool = False
    #: A start can be described for a host without kimbox.
    portable: bool = False
    #: Images are published: machines of any host are made from the published image.
    publishing: bool = False
    #: A guest whose record has an instance id (`Record.seed`) gets what cloud-init reads, with that id.
    seed: bool = False
    #: The guest gets the folders of the host in its record (`Record.mounts`) as devices with the tags kimbox0, kimbox1.
    mounts: bool = False
    #: The machine gets a network card for each network of its spec (`Record.networks`).
    networks: bool = False
    #: The machine has a screen at a Unix socket (`Record.display`).
    display: bool = False


#: The part of the addresses of QEMU's user network at which a guest sees the servers that its job may reach.
REACHED_NETWORK, FIRST_REACHED = "10.0.2", 100


@attrs.frozen
class Reach:
    """A server that the guest of a job may reach by TCP. `name`: how the guest calls it; `address`: where it is."""

    name: str
    address: str
    port: int


@attrs.frozen
class JobStart:
    """A start for a job, whose disk is `Machine.job_disk`. `timeout_s`: limit on the program; None: there is none.

    `id` is repeated in the status and in the events of the job. It has only letters and digits.
    """

    id: str
    timeout_s: int | None = None
    #: Whether the guest can open connections. ssh from this host works in any case.
    has_network: bool = False
    #: The guest ends with the thread of kimbox that starts it, also if kimbox is killed.
    ends_with_kimbox: bool = False
    #: The only servers that a guest without network can reach.
    reach: tuple[Reach, ...] = ()

    @property
    def seen(self) -> dict[str, str]:
        """Name of each server -> its address for the guest."""
        names = dict.fromkeys(server.name for server in self.reach)
        return {name: f"{REACHED_NETWORK}.{FIRST_REACHED + number}" for number, name in enumerate(names)}

    @property
    def is_awaited(self) -> bool:
        """Whether this is no job yet: the machine becomes a template, whose clones run jobs (AWAITED)."""
        return not self.id

    def credential(self) -> str:
        """The text that the guest gets (provisioners/job)."""
        names = ",".join(f"{name}={address}" for name, address in self.seen.items())
        return f"{self.id} {'infinity' if self.timeout_s is None else self.timeout_s} {names}".rstrip()


#: The start of a machine that becomes a template for jobs. It has the devices of a guest with a job, and a disk without
#: content. The network of a clone is limited outside of its memory, so one template serves jobs with and without one.
AWAITED = JobStart("", has_network=True)


@attrs.frozen
class Launch:
    """The parameters of a start. `box` is None if kimbox has only the record, and not the spec."""

    record: Record
    box: Box | None
    cpus: int
    memory_bytes: int
    #: Resume from the saved state instead of booting.
    resume: bool = False
    #: Called when the saved state is loaded, before the guest continues from it. Drivers whose program continues the
    #: guest itself do not call it.
    loaded: Callable[[Record], None] = lambda record: None
    #: The disk in `Machine.delivery`; None: there is none.
    delivery: DeliveryDisk | None = None
    #: The machine is started to be made into a template: its memory is the file `Machine.ram`.
    freezing: bool = False
    #: The job that runs in the guest; None: it is no guest for a job.
    job: JobStart | None = None
    #: Secret variables, a line NAME=VALUE for each.
    secrets: bytes = attrs.field(default=b"", repr=False)


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

    def grow(self, size_bytes: int) -> None:
        """Makes the disk of a machine that does not run larger. The guest grows its volumes at its next boot.

        Called again after a start that was killed. Raises StateError (`has-snapshots`).
        """

    def disk_size(self) -> int:
        """Returns the size of the disk as the guest sees it, in bytes. Only with the feature `own_disk`."""

    def put_back(self, record: Record) -> tuple[str, ...]:
        """Puts the disk of a sealed machine that does not run back to its image, except the volume `persistent`.

        Returns the parts of the disk that the last run had changed (`image.disk.pristine.differences`).
        """

    def start(self, launch: Launch) -> Record:
        """Starts the machine; returns the record with its ports and address, which is on disk before the guest runs."""

    def unpause(self) -> None:
        """Continues a guest whose processors are stopped."""

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        """Shuts a running guest down. Powers it off if that takes longer than `timeout_s`, or with `force`."""

    def suspend(self, written: Callable[[], None]) -> None:
        """Saves the whole state of a running guest and ends it. Calls `written` before the guest ends."""

    def forget_suspended(self) -> None:
        """Removes the saved state of a machine that has resumed."""

    def drop_suspended(self) -> None:
        """Removes the saved state of a machine that does not run."""

    def tidy(self) -> None:
        """Removes files that only a running machine needs."""

    def destroy(self) -> None:
        """Ends the machine and removes all of its files, also if it is incomplete."""

    def wait_until_gone(self, timeout_s: float) -> bool:
        """Waits for the guest to end by itself; True if it did within the timeout."""

    def readable_disk(self, image: Image, work: Path) -> Path:
        """The disk of a machine that does not run, for reading: a qcow2 on `image`, or a copy of one in `work`."""

    def endpoint(self, record: Record) -> Endpoint:
        """How ssh reaches the guest."""

    def observe(self, record: Record) -> Observation:
        """Observes the machine. Takes no lock."""

    def listen(self) -> bool:
        """Copies new events and output of the guest to the machine's folder; True if the guest runs."""

    def stopped_by(self) -> str:
        """Returns why an error of this host has stopped the processors of a running guest. Empty if they run.

        After an error of the accelerator, the next start uses another one.
        """

    def pid(self) -> int | None:
        """The process on this host that runs the guest. None if there is none, or if it belongs to a hypervisor."""

    def save_snapshot(self, name: str) -> None:
        """Saves the disks and, if the machine runs, its memory. No snapshot of that name may exist."""

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        """Restores a snapshot, whose record is in `launch`. Returns that record with the current ports and address."""

    def delete_snapshot(self, name: str) -> None:
        """Removes a snapshot that exists."""

    def disk_snapshots(self) -> list[str]:
        """Returns the snapshots in the disk of a machine that does not run, without the saved state of `suspend`."""


@runtime_checkable
class TemplateDriver(Driver, Protocol):
    """A driver with the feature `templates`."""

    def template_facts(self, launch: Launch) -> list[str]:
        """Returns what a saved memory depends on besides image and manifest: devices, processor, build of the program.

        A template continues only where all of it is equal.
        """

    def freeze(self, units: tuple[str, ...], target: Path, final: Path) -> None:
        """Freezes a guest that was started with `Launch.freezing`, saves it to the folder `target`, and ends it.

        `units`: systemd units that are stopped before, and started in each clone. `final`: the path that the folder has
        later, when clones refer to it.
        """

    def wake(
        self, launch: Launch, template: Path, identity: Callable[[], bytes], wait_until_awake: Callable[[], None]
    ) -> Record:
        """Continues the template in the folder `template` as this machine, which has no record yet.

        `identity` returns the line that the guest gets before any of its processes runs. `wait_until_awake` returns
        when the guest has applied it; until then the driver keeps the connection open. Returns the record with the
        ports.
        """

    def leave_template(self, record: Record) -> bool:
        """Makes the disk of a machine that does not run one on its image, with all data; False if it has snapshots.

        The snapshots in a disk need the template below it.
        """


@runtime_checkable
class MountDriver(Driver, Protocol):
    """A driver with the feature `mounts`. A start gives the guest its devices, except to one that resumes."""

    def plug_mounts(self, record: Record) -> None:
        """Gives a guest that runs the devices of the folders in its record."""

    def unplug_mounts(self, record: Record) -> None:
        """Takes them away. No folder is mounted in the guest."""


@runtime_checkable
class PortableDriver(Driver, Protocol):
    """A driver with the feature `portable`."""

    def portable_command(self, launch: Launch) -> list[str]:
        """Returns how a host without kimbox starts this machine: words that kimbox/node completes.

        The machine need not exist. Its ports are not forwarded if the record has no port for ssh.
        """


@runtime_checkable
class PublishingDriver(Driver, Protocol):
    """A driver with the feature `publishing`. The machine need not exist."""

    def publish(self, box: Box, image: Image) -> tuple[str, bool]:
        """Publishes the image of a box, unless it is. Returns its id there, and whether it was published now."""

    def unpublish(self, box: Box, key: str) -> int:
        """Removes the published images with this key. Returns their number."""


class DriverType(Protocol):
    """The class of a driver: what it has before a machine exists."""

    @property
    def features(self) -> Features: ...

    def __call__(self, machine: Machine) -> Driver:
        """The driver of one machine. Creating this object reads and writes nothing."""

    def check_host(self) -> list[HostCheck]:
        """Checks what this host has for this driver. Raises no error: a failure is a result."""

    def remains(self) -> dict[Path, str]:
        """Unused files and folders of the driver outside of the folders of machines, each with a description.

        Without those that a process works on now.
        """

    def remove_remains(self, path: Path) -> bool:
        """Removes a path that `remains` returned, unless a process uses it now. True if it was removed."""


def host_ports(box: Box) -> dict[int, int | None]:
    """Returns port of the guest -> port of the host in the spec, or None if kimbox chooses it."""
    return {SSH_PORT: None, **{forward.guest: forward.host for forward in box.forwards}}


def allot_ports(machine: Machine, record: Record, box: Box | None) -> Record:
    """Chooses free ports of the host, if possible the previous ones; writes and returns the record with them.

    Without a spec (`box` is None), the forwards of the record are used.
    """
    with ports.allotting():
        record = choose_ports(machine, record, box)
        machine.write_record(record)
    return record


def choose_ports(machine: Machine, record: Record, box: Box | None) -> Record:
    """Returns the record with ports as `allot_ports` chooses them. Call it inside `ports.allotting()`.

    The port of ssh in the record may be 0: the machine has had none.
    """
    last = ({SSH_PORT: record.ssh_port} if record.ssh_port else {}) | record.forwards
    chosen = ports.choose(machine, host_ports(box) if box else dict.fromkeys(last), last)
    for guest in [guest for guest in chosen if not box and chosen[guest] != last[guest]]:
        log.warn(f"port {last[guest]} of this host is in use: port {guest} of {machine.name} is at {chosen[guest]}")
    return attrs.evolve(record, ssh_port=chosen.pop(SSH_PORT), forwards=chosen)


def observe_folder(
    machine: Machine, record: Record, *, running: bool, paused: bool, unresponsive: bool = False
) -> Observation:
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
        unresponsive=unresponsive,
    )
