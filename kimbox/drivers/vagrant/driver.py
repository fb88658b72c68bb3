"""The driver `vagrant`: a machine that Vagrant runs from the Vagrantfile that `kimbox render` writes.

The guest has no port to the host. It writes its events to a file on /persistent, and drivers/fetch.py copies them over
ssh to the files that QEMU would write. So the rest of kimbox finds them in the same place for each driver.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kimbox import run
from kimbox.drivers import guestboot, hostcheck
from kimbox.drivers.base import Features, Launch, allot_ports
from kimbox.drivers.fetch import EventCopies, remove_fetched
from kimbox.drivers.hostcheck import HostCheck
from kimbox.drivers.names import prefix
from kimbox.drivers.vagrant import boxes, command, hypervisor
from kimbox.drivers.vagrant import hostcheck as vagrant_hostcheck
from kimbox.drivers.vagrant.hypervisor import Hypervisor
from kimbox.errors import GuestError
from kimbox.files import read_bounded, read_end, remove_tree, write_atomic
from kimbox.guest.endpoint import Endpoint
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record
from kimbox.machine.state import Observation, State
from kimbox.render.vagrantfile import VagrantMachine, render_vagrantfile
from kimbox.spec.model import BootMode, Box

if TYPE_CHECKING:
    from kimbox.machine.bootmode import Choice

#: Interval between two copies of the guest's events during a boot, in seconds.
LISTEN_S = 0.5

#: Timeout of the first answer of a guest, in seconds. After a restore, libvirt's bridge must first learn its port.
ANSWER_S = 180.0

#: Interval between two calls of `vagrant status`, in seconds. A call takes about one.
STATUS_S = 1.0

#: Number of bytes at the end of Vagrant's output that are shown if it fails with exit status 0.
OUTPUT_END_BYTES = 2048

_HOST_KEY = re.compile(r"^\S+ (ssh-ed25519 \S+)$", re.MULTILINE)
_HOST_NAME = re.compile(r"^[ \t]+HostName (\S+)$", re.MULTILINE)
_PORT = re.compile(r"^[ \t]+Port (\d{1,5})$", re.MULTILINE)


@attrs.define
class Vagrant:
    """The driver `vagrant` of one machine."""

    machine: Machine
    _copies: EventCopies = attrs.field(init=False)
    name = "vagrant"
    features = Features(suspend=True, memory_snapshots=True)

    def __attrs_post_init__(self) -> None:
        self._copies = EventCopies(self.machine, LISTEN_S)

    @staticmethod
    def check_host() -> list[HostCheck]:
        return [hostcheck.attempt("vagrant", vagrant_hostcheck.check)]

    @staticmethod
    def remains() -> dict[Path, str]:
        return boxes.remains()

    @staticmethod
    def remove_remains(path: Path) -> bool:
        return boxes.remove_remains(path)

    # ---- Vagrant itself

    def _call(self, what: str, act: Callable[[Any], Any]) -> Any:
        """Calls python-vagrant in the machine's folder. Raises GuestError with Vagrant's message if it fails."""
        log.now(f"vagrant {what}")
        machine = self.machine
        return command.call(self._backend, machine.folder, machine.vagrant_log, what, act, of=machine.name)

    @property
    def _backend(self) -> Hypervisor:
        return hypervisor.of(self.machine.folder)

    def _status(self) -> str:
        """Returns the state in `vagrant status`. Raises GuestError (`unexpected-output`) if it is not known."""
        name = self.machine.name
        output = str(self._call("status", lambda v: v._run_vagrant_command(["status", name, "--machine-readable"])))
        lines = [line.split(",") for line in output.splitlines()]
        states = [fields[3] for fields in lines if len(fields) > 3 and fields[1:3] == [name, "state"]]
        if len(states) != 1 or states[0] not in self._backend.STATES:
            shown = ", ".join(states)[:200]
            raise GuestError(
                f"vagrant status printed no known state of {name}: {shown or 'nothing'}",
                code="unexpected-output",
                fields={"name": name, "states": shown},
            )
        return states[0]

    def _exists(self) -> bool:
        """Whether Vagrant has created the machine."""
        return (self.machine.folder / ".vagrant/machines" / self.machine.name / self._backend.NAME / "id").exists()

    def running(self) -> tuple[bool, bool]:
        """Returns whether the guest runs, and whether it is paused."""
        if not self._exists():  # saves the second that `vagrant status` takes
            return False, False
        return self._backend.STATES[self._status()]

    # ---- creating and starting

    def prepare(self, box: Box, image: Image) -> None:
        backend = hypervisor.default()
        command.library(backend)
        boxes.ensure(image, box, backend, command.in_home(backend))

    def create(self, folder: Path, box: Box, image: Image) -> None:
        name = boxes.name_of(box, image)
        (folder / hypervisor.FILE).write_text(f"{hypervisor.default().NAME}\n")
        (folder / "box").write_text(f"{name}\n")
        (folder / self.machine.vagrantfile.name).write_text(self._vagrantfile(box, name, {}), encoding="utf-8")

    def _vagrantfile(self, box: Box, vagrant_box: str, host_ports: dict[int, int]) -> str:
        machine = VagrantMachine(box, vagrant_box, host_ports=host_ports)
        return render_vagrantfile([machine], key=self.machine.key.name, prefix=prefix())

    def _box(self) -> str:
        return read_bounded(self.machine.folder / "box", limit_bytes=1024).decode().strip()

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        guestboot.choose(self.machine, mode, choice)

    def grow(self, size_bytes: int) -> None:
        """Does nothing: without the feature `own_disk` no disk of this driver is grown."""

    def disk_size(self) -> int:
        return 0

    def put_back(self, record: Record) -> tuple[str, ...]:
        """Does nothing: without the feature `sealing` no box of this driver is sealed."""
        return ()

    def start(self, launch: Launch) -> Record:
        machine, record, box = self.machine, launch.record, launch.box
        if launch.resume:
            self._call("resume", lambda v: v.resume())
            return self._reached(record)
        is_new = record.ended is Ended.NEW or not self._exists()
        if is_new:
            self._remove()  # an interrupted first start may have left a domain without a network
            boxes.remove_image(self._box(), self._backend, machine)
            machine.known_hosts.unlink(missing_ok=True)  # a new disk has a new key
            remove_fetched(machine)
        record = attrs.evolve(allot_ports(machine, record, box), ended=record.ended)
        if box:
            write_atomic(machine.vagrantfile, self._vagrantfile(box, self._box(), record.forwards))
        with log.step(f"starting {machine.name} with Vagrant"):
            self._call("up", lambda v: v.up(provider=self._backend.NAME, provision=False))
            record = self._reached(record)
            if guestboot.needs_reboot(machine, self.endpoint(record), is_new=is_new):
                self._call("reload", lambda v: v.reload(provision=False))
                record = self._reached(record)
                guestboot.rebooted(machine)
        return record

    def _remove(self) -> None:
        """Runs `vagrant destroy`, and removes what Vagrant leaves, for example after an interrupted first `up`."""
        machine, backend = self.machine, self._backend
        # First, because Vagrant removes its list of networks, but not always the networks.
        created_networks = backend.networks(machine.folder, machine.name)
        if self._exists():
            self._call("destroy", lambda v: v.destroy())
        backend.remove_leftovers(machine.name, created_networks)

    def _reached(self, record: Record) -> Record:
        """Returns the record with the address that Vagrant reports. Pins the host key and copies the guest's events.

        Raises GuestError: `unexpected-output` without an address, `host-key-missing`, or `guest-unreachable`.
        """
        config = str(self._call("ssh-config", lambda v: v._run_vagrant_command(["ssh-config", self.machine.name])))
        host = _HOST_NAME.search(config)
        port = _PORT.search(config)
        if not host or not port:
            raise GuestError(
                f"vagrant ssh-config printed no address of {self.machine.name}: {config[:200]!r}",
                code="unexpected-output",
                fields={"name": self.machine.name},
            )
        record = attrs.evolve(record, ssh_host=host[1], ssh_port=int(port[1]))
        self.machine.write_record(record)
        if not self.machine.known_hosts.exists():
            scanned = run.run(["ssh-keyscan", "-T", "30", "-t", "ed25519", "-p", port[1], host[1]], check=False)
            key = _HOST_KEY.search(scanned.stdout)
            if not key:
                raise GuestError(
                    f"{self.machine.name} does not report its ssh host key: {scanned.stderr.strip()[:300]}",
                    code="host-key-missing",
                    fields={"name": self.machine.name},
                )
            keys.pin_host_key(self.machine, key[1])
        self._fetch_until_answered(record)
        return record

    def _fetch_until_answered(self, record: Record) -> None:
        deadline = time.monotonic() + ANSWER_S
        while not self._copies.fetch(record):
            if time.monotonic() > deadline:
                raise GuestError(
                    f"{self.machine.name} did not answer at {record.ssh_host} port {record.ssh_port} "
                    f"within {ANSWER_S:.0f} s",
                    code="guest-unreachable",
                    hint=f"the complete output of Vagrant is in {self.machine.vagrant_log}",
                    fields={"name": self.machine.name, "host": record.ssh_host, "port": str(record.ssh_port)},
                )
            time.sleep(LISTEN_S)

    # ---- stopping

    def unpause(self) -> None:
        self._call("resume", lambda v: v.resume())

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        if before is State.PAUSED:
            self.unpause()
        self._copies.answers(self.machine.record())  # the last events: a guest that is off cannot send them
        self._call("halt", lambda v: v.halt(force=force))
        if self.running()[0]:
            raise GuestError(
                f"{self.machine.name} still runs after vagrant halt",
                code="vagrant-failed",
                hint=f"`kimbox halt --force {self.machine.name}` powers it off",
                fields={"name": self.machine.name, "command": "halt"},
            )

    def suspend(self, written: Callable[[], None]) -> None:
        # First, because Vagrant saves and ends the guest in one step. If it fails, the guest runs, and the record is
        # corrected.
        written()
        self._call("suspend", lambda v: v.suspend())
        if self.running()[0]:  # Vagrant exits with status 0 even then
            output = command.failure_text("", read_end(self.machine.vagrant_log, OUTPUT_END_BYTES))
            raise GuestError(
                f"vagrant suspend did not suspend {self.machine.name}:\n{output}",
                code="vagrant-failed",
                fields={"name": self.machine.name, "command": "suspend"},
            )

    def forget_suspended(self) -> None:
        """Does nothing: libvirt removes the saved state when it resumes the machine."""

    def drop_suspended(self) -> None:
        self._call("resume", lambda v: v.resume())
        self._call("halt", lambda v: v.halt(force=True))

    def tidy(self) -> None:
        """Does nothing, except after an interrupted first start: other runs leave no files."""
        if self.machine.record().ended is Ended.NEW:
            self._remove()

    def destroy(self) -> None:
        machine, backend = self.machine, self._backend
        box = self._box() if (machine.folder / "box").exists() else None
        self._remove()
        machine.record_file.unlink(missing_ok=True)
        machine.vagrantfile.unlink(missing_ok=True)
        remove_tree(machine.folder)
        if box:
            boxes.remove(box, backend, command.in_home(backend))

    # ---- observing

    def readable_disk(self, image: Image, work: Path) -> Path:
        return self._backend.copy_disk(self.machine.name, image, work)

    def endpoint(self, record: Record) -> Endpoint:
        return self.machine.endpoint(record)

    def observe(self, record: Record) -> Observation:
        # A machine that answers with its own host key runs. This saves the second that `vagrant status` takes.
        running, paused = True, False
        if record.ended is Ended.NEW:  # the first `up` was interrupted or still runs; the next one starts again
            running = False
        elif record.ended is not None or not self._exists() or not self._copies.answers(record):
            running, paused = self.running()
            if running and not paused and record.ended is not None:
                self._copies.answers(record)
        return Observation(
            exists=True,
            running=running,
            paused=paused,
            suspended=record.ended is Ended.SUSPENDED,
            events=self.machine.boot_events(),
            ended_by_us=True,  # users may halt with Vagrant, which does not distinguish that from a crash
        )

    def listen(self) -> bool:
        return self._copies.listen(lambda: self.running()[0])

    def stopped_by(self) -> str:
        return ""

    def pid(self) -> int | None:
        """None: the process belongs to the hypervisor."""
        return None

    def wait_until_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.running()[0]:
            if time.monotonic() > deadline:
                return False
            time.sleep(STATUS_S)
        return True

    # ---- snapshots

    def save_snapshot(self, name: str) -> None:
        self._call("snapshot save", lambda v: v.snapshot_save(name))

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        self._call("snapshot restore", lambda v: v.snapshot_restore(name))
        if not self.running()[0]:
            return launch.record
        self._copies.forget()
        return self._reached(launch.record)

    def delete_snapshot(self, name: str) -> None:
        self._call("snapshot delete", lambda v: v.snapshot_delete(name))

    def disk_snapshots(self) -> list[str]:
        return [str(name) for name in self._call("snapshot list", lambda v: v.snapshot_list())]
