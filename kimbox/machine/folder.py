"""The folder of a machine and the files in it, and the list of all machines.

machines/<name>/machine.json     the record: box, purpose, driver, plan, ids and ports (record.py)
machines/<name>/disk.qcow2       the disk: an overlay on an image of the store
machines/<name>/disk.qcow2.new   the new disk, while `kimbox shrink` or the start of a sealed box writes it
machines/<name>/package/         a copy of the disk, while `kimbox package` cleans it
machines/<name>/save/            the pack that `kimbox save` fills
machines/<name>/saved/           spec and lock of a machine that was made of a save
machines/<name>/commit/          the new image, while `kimbox maintain --commit` writes it, as package/
machines/<name>/scratch.qcow2    the scratch space, if the spec has one: created at each start, removed by halt
machines/<name>/delivery.raw     the manifest and commits for a guest that starts, until it has taken them
machines/<name>/seed.iso         what cloud-init reads in a guest whose image kimbox did not build
machines/<name>/job.raw          the disk of the job that runs in the machine
machines/<name>/job.log          the output of that job
machines/<name>/job-unfinished.json  what `kimbox job recover` needs, until the results are written
machines/<name>/id_ed25519       the private key for ssh; id_ed25519.pub is its public key
machines/<name>/known_hosts      the ssh host key of the guest, after the guest has reported it
machines/<name>/events.jsonl     the events of the guest, of this boot and earlier ones
machines/<name>/serial.log       the serial console of this run; serial.log.1 of the run before
machines/<name>/provision.log    the output of provisioning
machines/<name>/recorder.log     messages of the program that limits the size of these logs of a sealed box
machines/<name>/audit.jsonl      the audit reports of a sealed box
machines/<name>/audits.jsonl     results of past audits; audits.lock is held while it is written
machines/<name>/data.key         the key of a sealed box's encrypted credentials; the guest gets it at each start
machines/<name>/role.tar         role, site and rules of a sealed box; the guest gets them at each start
machines/<name>/rotate.tar       new credentials of a sealed box, during the start that delivers them
machines/<name>/unseal           exists while a sealed box is unsealed
machines/<name>/locks/           the locks of the last manifests that were sent, by the digest of the manifest
machines/<name>/snapshots/       for each snapshot, the record and the logs of its time
machines/<name>/ram              the memory of a machine that is being made into a template
machines/<name>/qmp.sock         the socket on which QEMU listens for QMP
machines/<name>/freeze.sock      only of a clone: the socket on which it has got its identity
machines/<name>/ssh.sock         the connection that ssh and exec share, while it is open
machines/<name>/loading.json     when the kernel of the last boot started, seen from the host (timeline.py)
machines/<name>/display.sock     the screen, while the box runs and has one
machines/<name>/forwards.sock    the connection of `guest: auto`; forwards.lock, forwards.json and forwards.log too
machines/<name>/network-*        the sockets of networks between boxes, and the logs of their programs
machines/<name>/halt.pipe        a pipe to the guest's port that shuts it down, while it runs
machines/<name>/virtiofsd0.log   messages of the program that serves the first folder of the host. It locks mount0.lock
machines/<name>/run.lock         locked by the QEMU process as long as it runs
machines/<name>/Vagrantfile      only if Vagrant runs the machine; .vagrant and vagrant.log too
machines/<name>/cloud.json       only if the machine is in a cloud: what kimbox created there (journal.py)
machines/<name>.lock             held by the kimbox process that changes the machine
locks/<name>.lock                the kimbox.lock of a shipped box, whose spec is in a folder that users do not write to
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

#: The account of a box for logins with ssh.
USER = "vagrant"

#: Maximum wait for another kimbox process that changes the machine.
LOCK_WAIT_S = 5.0

#: Maximum size of each file with output of a sealed guest. Its reports need about 20 MiB a year.
OUTPUT_LIMIT_BYTES = 64 << 20

#: Number of bytes at the start and at the end of the events file that are read.
EVENTS_HEAD_BYTES = 256 << 10
EVENTS_TAIL_BYTES = 1 << 20

#: The locks of machines that this process holds.
_held: set[Path] = set()


@attrs.frozen
class Machine:
    """A machine and the paths of its files. Creating the object reads no file; the machine may not exist."""

    name: str
    #: The folder that holds the folder of the machine. Only that of a template which is being made has another one.
    place: Path = attrs.field(factory=paths.machines_dir)

    @property
    def folder(self) -> Path:
        return self.place / self.name

    @property
    def unfinished(self) -> Path:
        """The folder while it is being created. It remains only if that was interrupted."""
        return self.place / f".tmp-{self.name}"

    @property
    def lock_file(self) -> Path:
        return self.place / f"{self.name}.lock"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def new_disk(self) -> Path:
        return self.folder / "disk.qcow2.new"

    @property
    def package_work(self) -> Path:
        return self.folder / "package"

    @property
    def commit_work(self) -> Path:
        return self.folder / "commit"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch.qcow2"

    @property
    def delivery(self) -> Path:
        return self.folder / "delivery.raw"

    @property
    def seed(self) -> Path:
        return self.folder / "seed.iso"

    @property
    def job_disk(self) -> Path:
        return self.folder / "job.raw"

    @property
    def job_log(self) -> Path:
        return self.folder / "job.log"

    @property
    def unfinished_job(self) -> Path:
        return self.folder / "job-unfinished.json"

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
    def loading_file(self) -> Path:
        return self.folder / "loading.json"

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
    def outputs(self) -> tuple[Path, ...]:
        """The files with what the guest of the current start sends."""
        return self.serial_log, self.events_file, self.provision_log, self.audit_log

    @property
    def past_audits(self) -> Path:
        return self.folder / "audits.jsonl"

    @property
    def data_key(self) -> Path:
        return self.folder / "data.key"

    @property
    def role_file(self) -> Path:
        return self.folder / "role.tar"

    @property
    def rotate_file(self) -> Path:
        return self.folder / "rotate.tar"

    @property
    def unseal_mark(self) -> Path:
        """Exists from the start of `kimbox secure --unseal` until the box is unsealed."""
        return self.folder / "unseal"

    @property
    def locks(self) -> Path:
        return self.folder / "locks"

    @property
    def qemu_log(self) -> Path:
        return self.folder / "qemu.log"

    @property
    def recorder_log(self) -> Path:
        return self.folder / "recorder.log"

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
        """The socket on which QEMU listens for QMP. Both sides use a relative path, because its length is limited."""
        return self.folder / "qmp.sock"

    @property
    def halt_pipe(self) -> Path:
        return self.folder / "halt.pipe"

    @property
    def freeze_socket(self) -> Path:
        """The socket of the port on which a clone gets its identity. Its path is relative, as that of `qmp_socket`."""
        return self.folder / "freeze.sock"

    @property
    def ram(self) -> Path:
        return self.folder / "ram"

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
        """The host name of the box in known_hosts and in the output of `ssh-config`."""
        return f"kimbox-{self.name}"

    @property
    def exists(self) -> bool:
        with contextlib.suppress(PermissionError):  # another user made it: it is there, and cannot be read
            return self.record_file.is_file()
        return True

    @property
    def running(self) -> bool:
        """Whether a QEMU process runs the machine: it holds the run lock from its start to its end."""
        return is_locked(self.run_lock)

    def record(self) -> Record:
        """Reads machine.json.

        Raises StateError (`box-not-found`) if the machine does not exist, KimboxError (`file-damaged`,
        `unsupported-format`, `file-too-large`) if machine.json is not valid.
        """
        try:
            value = read_json(self.record_file)
        except (FileNotFoundError, NotADirectoryError):
            raise StateError(
                f"there is no box {self.name}",
                code="box-not-found",
                hint=f"create it with `kimbox up {self.name}`",
                fields={"name": self.name},
            ) from None
        except KimboxError as error:
            hint = f"`kimbox destroy {self.name}` removes the machine"
            raise KimboxError(error.message, code=error.code, hint=hint, fields=error.fields) from None
        return Record.parse(value, self.record_file)

    def write_record(self, record: Record) -> None:
        """Replaces machine.json atomically."""
        write_json(self.record_file, record.as_json())

    def boot_events(self) -> tuple[Event, ...]:
        """Returns the events of the last boot, oldest first.

        Of a large file only the start and the end are read: a guest that sends many events cannot push out the first
        ones. The event `sealed` counts only if this host has the key of the box: a guest could lock its owner out.
        """
        try:
            size = self.events_file.stat().st_size
        except OSError:
            return ()
        start = max(0, size - EVENTS_TAIL_BYTES)
        events = Tail(self.events_file).read(EVENTS_HEAD_BYTES) if start > EVENTS_HEAD_BYTES else []
        events += Tail(self.events_file, offset=start).read()
        is_sealing = self.data_key.exists()
        return tuple(
            event for event in events if event.boot == events[-1].boot and (is_sealing or event.name != "sealed")
        )

    def endpoint(self, record: Record) -> Endpoint:
        """Returns the ssh endpoint of the machine: address, user, key and known_hosts."""
        return Endpoint(record.ssh_host, record.ssh_port, USER, self.key, self.known_hosts, self.alias)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the machine, and first removes temporary files that a killed process left.

        Raises StateError (`busy`) if another process holds the lock for longer than LOCK_WAIT_S.
        """
        private_dir(self.place)
        busy = f"another kimbox process is at work on the box {self.name}"
        with locked(self.lock_file, wait_s=LOCK_WAIT_S, busy=busy):
            _held.add(self.lock_file)
            try:
                for folder, _, _ in os.walk(self.folder):
                    remove_left(Path(folder))
                yield
            finally:
                _held.discard(self.lock_file)

    def is_locked_by_another(self) -> bool:
        """Whether another process holds the lock of the machine."""
        return self.lock_file not in _held and is_locked(self.lock_file)


def machines() -> list[Machine]:
    """Returns all machines, sorted by name."""
    if not (folder := paths.machines_dir()).is_dir():
        return []
    # The folder of a machine that is being created begins with a dot.
    candidates = [Machine(path.name) for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted((machine for machine in candidates if machine.exists), key=lambda machine: machine.name)


def interrupted() -> list[Machine]:
    """Returns the machines whose creation or removal was interrupted, sorted by name. They have files and no record."""
    names = {path.name.removeprefix(".tmp-") for path in paths.machines_dir().glob("*") if path.is_dir()}
    found = [Machine(name) for name in sorted(names) if not name.startswith(".")]
    return [machine for machine in found if not machine.exists and not is_locked(machine.lock_file)]


def machines_of(box: str) -> list[Machine]:
    """Returns all machines of a box, sorted by name. Machines with a damaged record are ignored."""
    return [machine for machine, record in _records() if record.box == box]


def machine_of(box: str, purpose: Purpose = Purpose.BOX) -> Machine:
    """Returns the machine of a box for a purpose. If no record has both, the machine returned does not exist yet.

    Raises StateError (`several-machines`) if several machines have that purpose and none of them has the default name,
    UsageError (`bad-name`) if the default name would be too long.
    """
    default = Machine(_default_name(box, purpose))
    if default.exists:
        return default
    candidates = [machine for machine, record in _records() if (record.box, record.purpose) == (box, purpose)]
    if len(candidates) > 1:
        names = ", ".join(machine.name for machine in candidates)
        raise StateError(
            f"the box {box} has several machines for the purpose {purpose}: {names}",
            code="several-machines",
            hint="give the name of one of them",
            fields={"name": box, "purpose": purpose, "machines": names},
        )
    return candidates[0] if candidates else default


def _default_name(box: str, purpose: Purpose) -> str:
    """Returns the name of a new machine. Raises UsageError (`bad-name`) if it is too long."""
    if purpose is Purpose.BOX:
        return box
    suffix = MAINTENANCE_SUFFIX if purpose is Purpose.MAINTENANCE else f"-{purpose}"
    try:
        return box_name(box + suffix)
    except Fault:
        raise UsageError(
            f"the name {box} is too long: its machine for the purpose {purpose} would be {box}{suffix}",
            code="bad-name",
            fields={"name": box, "purpose": purpose},
        ) from None


def _records() -> list[tuple[Machine, Record]]:
    """Returns all machines whose record can be read, each with its record."""
    records = []
    for machine in machines():
        with contextlib.suppress(KimboxError):
            records.append((machine, machine.record()))
    return records
