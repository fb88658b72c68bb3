"""A driver without a guest. It records each call, and changes the machine's folder as QEMU does."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

import attrs
import makemachine
import pytest
from makemachine import event

from kimbox.drivers import registry
from kimbox.drivers.base import Features, Launch, allot_ports, observe_folder
from kimbox.drivers.hostcheck import HostCheck
from kimbox.guest import deliverydisk
from kimbox.guest.endpoint import Endpoint
from kimbox.image.store.images import Image
from kimbox.machine import bootmode
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.machine.state import Observation, State
from kimbox.spec.model import BootMode, Box

#: Size of the disk of a spec without a size, in bytes.
DEFAULT_DISK_BYTES = 16 << 30

#: Everything that a driver may be able to do.
ALL_FEATURES = Features(
    own_disk=True, sealing=True, suspend=True, memory_snapshots=True, delivery_disk=True, secrets=True, mounts=True
)


@attrs.define
class Script:
    """The behaviour of the guest of a FakeDriver, and the calls of the driver."""

    #: Names of the calls, in order.
    did: list[str] = attrs.field(factory=list)
    #: The arguments of every start, with the record at that time.
    launches: list[Launch] = attrs.field(factory=list)
    #: The events that the guest sends during a boot, as lines of JSON.
    boot: list[str] = attrs.field(factory=lambda: [*BOOT_EVENTS])
    #: `paused`. Every other value means that the guest runs.
    status: str = "running"
    #: Whether the guest shuts down after the power button is pressed.
    on_power: bool = True
    #: The parts of the disk that the guest has changed.
    changed: tuple[str, ...] = ()
    #: Size of the disk. None: that of the spec.
    disk_bytes: int | None = None


BOOT_EVENTS = [
    event("booting", mode="keep"),
    event("hostkey", key=makemachine.HOST_KEY),
    event("sshd"),
    event("waiting"),
]


@attrs.define
class FakeDriver:
    """The driver of one machine. The machine runs while the driver holds the machine's run lock."""

    machine: Machine
    script: Script
    features: Features = ALL_FEATURES
    name: str = registry.DEFAULT
    _run_lock: IO[str] | None = None

    def note(self, what: str) -> None:
        self.script.did.append(what)

    def run_process(self) -> None:
        self._run_lock = self.machine.run_lock.open("w")
        fcntl.flock(self._run_lock, fcntl.LOCK_EX)

    def end_process(self) -> None:
        if self._run_lock:
            self._run_lock.close()
        self._run_lock = None

    def prepare(self, box: Box, image: Image) -> None:
        pass

    def create(self, folder: Path, box: Box, image: Image) -> None:
        self.note("disk")
        self.script.disk_bytes = box.disk.size_bytes
        (folder / self.machine.disk.name).touch()

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        assert self._run_lock is None, "the boot mode cannot be set in the disk of a machine that runs"
        bootmode.choose(self.machine, mode, choice)

    def grow(self, size_bytes: int) -> None:
        assert self._run_lock is None, "the disk of a machine that runs cannot grow"
        self.note(f"grow {size_bytes}")
        self.script.disk_bytes = size_bytes

    def disk_size(self) -> int:
        return self.script.disk_bytes or DEFAULT_DISK_BYTES

    def put_back(self, record: Record) -> tuple[str, ...]:
        assert self._run_lock is None, "the disk of a machine that runs cannot be put back"
        self.note("put back")
        return self.script.changed

    def start(self, launch: Launch) -> Record:
        record = allot_ports(self.machine, launch.record, launch.box)
        self.note("resume" if launch.resume else "start")
        self.script.launches.append(attrs.evolve(launch, record=record))
        self.run_process()
        if not launch.resume:
            self.machine.events_file.write_text("".join(self.script.boot))
        return record

    def unpause(self) -> None:
        self.note("unpause")

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        if not force:
            self.note("power button")
        if force or not self.script.on_power:
            self.note("kill")
        self.end_process()

    def suspend(self, written: Callable[[], None]) -> None:
        self.note("save")
        written()
        self.note("kill")
        self.end_process()

    def plug_mounts(self, record: Record) -> None:
        self.note("plug")

    def unplug_mounts(self, record: Record) -> None:
        self.note("unplug")

    def forget_suspended(self) -> None:
        self.note("forget")

    def drop_suspended(self) -> None:
        self.note("drop")
        self.machine.scratch.unlink(missing_ok=True)

    def tidy(self) -> None:
        self.machine.scratch.unlink(missing_ok=True)
        deliverydisk.discard(self.machine.delivery)
        self.machine.rotate_file.unlink(missing_ok=True)

    def destroy(self) -> None:
        if self.machine.running:
            self.note("kill")
            self.end_process()
        self.machine.record_file.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.machine.folder)

    def wait_until_gone(self, timeout_s: float) -> bool:
        return not self.machine.running

    def readable_disk(self, image: Image, work: Path) -> Path:
        return self.machine.disk

    def endpoint(self, record: Record) -> Endpoint:
        return self.machine.endpoint(record)

    def observe(self, record: Record) -> Observation:
        running = self.machine.running
        return observe_folder(self.machine, record, running=running, paused=running and self.script.status == "paused")

    def listen(self) -> bool:
        return self.machine.running

    def stopped_by(self) -> str:
        return ""

    def pid(self) -> int | None:
        return None

    def save_snapshot(self, name: str) -> None:
        self.note(f"keep {name}")

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        if self.machine.running:
            self.note("kill")
            self.end_process()
        self.tidy()
        if launch.resume:
            return self.start(launch)
        self.note(f"revert {name}")
        return launch.record

    def delete_snapshot(self, name: str) -> None:
        self.note(f"remove {name}")

    def disk_snapshots(self) -> list[str]:
        return []


@attrs.frozen
class FakeDrivers:
    """What the registry contains for a driver: called with a machine, it returns the FakeDriver of this machine."""

    script: Script
    made: dict[str, FakeDriver] = attrs.field(factory=dict)
    features: Features = ALL_FEATURES

    def __call__(self, machine: Machine) -> FakeDriver:
        return self.made.setdefault(machine.name, FakeDriver(machine, self.script, self.features))

    def check_host(self) -> list[HostCheck]:
        return []

    def remains(self) -> dict[Path, str]:
        return {}

    def remove_remains(self, path: Path) -> bool:
        return not path.exists()


def install(
    monkeypatch: pytest.MonkeyPatch, script: Script | None = None, features: Features = ALL_FEATURES
) -> FakeDrivers:
    """Replaces the default driver with FakeDriver until the test ends."""
    drivers = FakeDrivers(script or Script(), features=features)
    monkeypatch.setitem(registry.DRIVERS, registry.DEFAULT, lambda: drivers)
    return drivers
