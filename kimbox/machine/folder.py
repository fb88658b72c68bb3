"""The folder of a machine: the files in it, and which machines there are.

machines/<name>/machine.json     the record: box, purpose, driver, plan, ids and ports (record.py)
machines/<name>/disk.qcow2       its disk: an overlay on an image of the store
machines/<name>/disk.qcow2.new   the disk that takes its place, while `kimbox shrink` makes it
machines/<name>/scratch.qcow2    its scratch space, if the spec asks for one: made anew at every start, removed by halt
machines/<name>/id_ed25519       the key that may log in; id_ed25519.pub beside it
machines/<name>/known_hosts      the guest's host key, once the guest has told it
machines/<name>/events.jsonl     what the guest said through its port, this boot and the last ones
machines/<name>/serial.log       its console, this run; serial.log.1 the run before
machines/<name>/provision.log    output of its provisioning
machines/<name>/audit.jsonl      what a sealed box says of how well it is closed
machines/<name>/data.key         what a sealed box's credentials are locked with; it gets it at each start
machines/<name>/rotate.tar       what is to give a sealed box new credentials, from one start to its end
machines/<name>/unseal           there while a sealed box is to be opened without its secrets
machines/<name>/locks/           the lock of each manifest that the box was sent lately, by the manifest's digest
machines/<name>/snapshots/       what is told of each snapshot: the record and the logs of then
machines/<name>/qmp.sock         where QEMU listens for QMP
machines/<name>/ssh.sock         the connection that ssh and exec share, while there is one
machines/<name>/run.lock         locked by the QEMU process as long as it lives
machines/<name>/Vagrantfile      of a machine that Vagrant runs; beside it .vagrant and vagrant.log
machines/<name>.lock             held by the one kimbox that changes the machine
locks/<name>.lock                the kimbox.lock of a shipped box: its spec has no folder of the user's
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.files import is_locked, locked, private_dir, read_json, remove_left, write_json
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.events import Event, Tail
from kimbox.machine.record import MAINTENANCE_SUFFIX, VAGRANTFILE, Purpose, Record
from kimbox.spec.nodes import Fault
from kimbox.spec.rules import box_name

#: The account of a box that may log in.
USER = "vagrant"

#: Waiting for another kimbox that is at work on the machine.
LOCK_WAIT_S = 5.0

#: How much of the events file is looked at, from its end.
EVENTS_TAIL_BYTES = 1 << 20


@attrs.frozen
class Machine:
    """A machine's place on disk. Making one of these touches nothing."""

    name: str

    @property
    def folder(self) -> Path:
        return paths.machines_dir() / self.name

    @property
    def unfinished(self) -> Path:
        """Where the folder is while it is being made; there afterwards only if that was interrupted."""
        return paths.machines_dir() / f".tmp-{self.name}"

    @property
    def lock_file(self) -> Path:
        return paths.machines_dir() / f"{self.name}.lock"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def new_disk(self) -> Path:
        """Where the disk is while it is made small; there afterwards only if that was interrupted."""
        return self.folder / "disk.qcow2.new"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch.qcow2"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def serial_log(self) -> Path:
        return self.folder / "serial.log"

    @property
    def provision_log(self) -> Path:
        return self.folder / "provision.log"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.jsonl"

    @property
    def data_key(self) -> Path:
        return self.folder / "data.key"

    @property
    def rotate_file(self) -> Path:
        return self.folder / "rotate.tar"

    @property
    def unseal_mark(self) -> Path:
        """There while a sealed box is to become open again."""
        return self.folder / "unseal"

    @property
    def locks(self) -> Path:
        return self.folder / "locks"

    @property
    def qemu_log(self) -> Path:
        return self.folder / "qemu.log"

    @property
    def run_lock(self) -> Path:
        return self.folder / "run.lock"

    @property
    def pid_file(self) -> Path:
        return self.folder / "qemu.pid"

    @property
    def record_file(self) -> Path:
        return self.folder / "machine.json"

    @property
    def qmp_socket(self) -> Path:
        """Where QEMU listens for QMP. Both sides name it from the folder, as the path of a socket must be short."""
        return self.folder / "qmp.sock"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    @property
    def vagrantfile(self) -> Path:
        return self.folder / VAGRANTFILE

    @property
    def vagrant_log(self) -> Path:
        return self.folder / "vagrant.log"

    @property
    def alias(self) -> str:
        """The host name under which known_hosts and ssh-config know the box."""
        return f"kimbox-{self.name}"

    @property
    def exists(self) -> bool:
        return self.record_file.is_file()

    @property
    def running(self) -> bool:
        """Whether a QEMU process lives: it holds the lock it was born with."""
        return is_locked(self.run_lock)

    def record(self) -> Record:
        """What the machine was made from. Raises StateError if there is no such machine."""
        try:
            value = read_json(self.record_file)
        except (FileNotFoundError, NotADirectoryError):
            hint = f"create it with `kimbox up {self.name}`"
            raise StateError(f"there is no box {self.name}", hint=hint) from None
        except KimboxError as error:
            raise KimboxError(error.message, hint=f"`kimbox destroy {self.name}` removes the machine") from None
        return Record.parse(value, self.record_file)

    def write_record(self, record: Record) -> None:
        """Replaces machine.json, whole or not at all."""
        write_json(self.record_file, record.as_json())

    def boot_events(self) -> tuple[Event, ...]:
        """The events of the last boot, oldest first."""
        try:
            size = self.events_file.stat().st_size
        except FileNotFoundError:
            return ()
        events = Tail(self.events_file, offset=max(0, size - EVENTS_TAIL_BYTES)).read()
        return tuple(event for event in events if event.boot == events[-1].boot)

    def endpoint(self, record: Record) -> Endpoint:
        """How ssh reaches the box."""
        return Endpoint(record.ssh_host, record.ssh_port, USER, self.key, self.known_hosts, self.alias)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other kimbox from changing this machine; tidies up after one that was killed.

        Raises StateError if one is at it.
        """
        private_dir(paths.machines_dir())
        busy = f"another kimbox is at work on the box {self.name}"
        with locked(self.lock_file, wait_s=LOCK_WAIT_S, busy=busy):
            for folder, _, _ in os.walk(self.folder):
                remove_left(Path(folder))
            yield


def read_end(path: Path, limit_bytes: int) -> bytes:
    """The end of a file, or nothing if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit_bytes))
            return file.read(limit_bytes)
    except OSError:
        return b""


def machines() -> list[Machine]:
    """Every machine there is, by name."""
    folder = paths.machines_dir()
    if not folder.is_dir():
        return []
    found = [Machine(path.name) for path in folder.iterdir() if not path.name.startswith(".")]  # not what is being made
    return sorted((machine for machine in found if machine.exists), key=lambda machine: machine.name)


def machines_of(box: str) -> list[Machine]:
    """Every machine of the box of that name, by the name of the machine. Damaged records are passed over."""
    return [machine for machine, record in _records() if record.box == box]


def machine_of(box: str, purpose: Purpose = Purpose.BOX) -> Machine:
    """The machine that a box has for a purpose: the one whose record says so, or the place of a new one.

    Raises StateError where there are several, none of them of the usual name, UsageError if the name of the box is too
    long for a name of that purpose.
    """
    usual = Machine(_usual_name(box, purpose))
    if usual.exists:
        return usual
    found = [machine for machine, record in _records() if (record.box, record.purpose) == (box, purpose)]
    if len(found) > 1:
        names = ", ".join(machine.name for machine in found)
        raise StateError(f"{box} has several machines of the purpose {purpose}: {names}", hint="name one of them")
    return found[0] if found else usual


def _usual_name(box: str, purpose: Purpose) -> str:
    """The name of a new machine."""
    if purpose is Purpose.BOX:
        return box
    suffix = MAINTENANCE_SUFFIX if purpose is Purpose.MAINTENANCE else f"-{purpose}"
    try:
        return box_name(box + suffix)
    except Fault:
        raise UsageError(f"{box} is too long a name: a machine for {purpose} is named {box}{suffix}") from None


def _records() -> list[tuple[Machine, Record]]:
    """Every machine whose record can be read, with its record."""
    found = []
    for machine in machines():
        with contextlib.suppress(KimboxError):
            found.append((machine, machine.record()))
    return found
