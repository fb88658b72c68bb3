"""The driver `qemu`: its calls of the process, and their order. The process is a double that records the calls."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import makebox
import makemachine
import pytest
from refused import refused

from kimbox import paths
from kimbox.actions.observe import state
from kimbox.drivers import accelerator
from kimbox.drivers.accelerator import KVM_WORKS
from kimbox.drivers.base import Launch
from kimbox.drivers.qemu import disk, driver, process
from kimbox.drivers.qemu.command import Invocation, command, credentials
from kimbox.drivers.qemu.driver import Qemu
from kimbox.errors import GuestError, KimboxError
from kimbox.files import locked
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record, Sealed
from kimbox.machine.state import State
from kimbox.run import run
from kimbox.settings import settings
from kimbox.spec.model import Gateway, Network, Outbound, Role, Secure


class Process:
    """The functions that change the process or the content of its disk. `did` has their calls."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.did: list[str] = []
        self.started: list[Invocation] = []
        self.on_power = True
        self._run_lock: IO[str] | None = None

    def start(self, invocation: Invocation) -> None:
        self.did.append("resume" if invocation.saved_state else "start")
        self.started.append(invocation)
        self._run_lock = self.machine.run_lock.open("w")
        fcntl.flock(self._run_lock, fcntl.LOCK_EX)

    def unpause(self, _: Machine) -> None:
        self.did.append("continue")

    def power_off(self, _: Machine, timeout_s: float) -> bool:
        self.did.append("power button")
        if self.on_power:
            self.end()
        return self.on_power

    def kill(self, _: Machine) -> None:
        self.did.append("kill")
        self.end()

    def suspend(self, _: Machine) -> None:
        self.did.append("save")

    def revert(self, _: Machine, name: str) -> None:
        self.did.append(f"revert {name}")

    def end(self) -> None:
        if self._run_lock:
            self._run_lock.close()
        self._run_lock = None


@pytest.fixture
def feigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """The double in place of the process of a machine that is halted."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(settings, "quiet", True)
    monkeypatch.setattr(accelerator, "find", lambda: KVM_WORKS)
    feigned = Process(makemachine.make_machine(ended=Ended.HALTED))
    for name in ("start", "unpause", "power_off", "kill"):
        monkeypatch.setattr(process, name, getattr(feigned, name))
    for name in ("suspend", "revert"):
        monkeypatch.setattr(disk, name, getattr(feigned, name))
    yield feigned
    feigned.end()


def launch(machine: Machine, *, resume: bool = False) -> Launch:
    return Launch(machine.record(), None, 2, 1 << 30, resume=resume)


def test_a_port_that_is_taken_before_qemu_has_it_is_replaced(
    feigned: Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another program takes the port first, and kimbox chooses other ports. The third failure is an error."""
    machine, tried_ports = feigned.machine, []
    to_start = attrs.evolve(launch(machine), box=makebox.make_box(tmp_path))

    def start_late(invocation: Invocation) -> None:
        tried_ports.append(invocation.record.ssh_port)
        if len(tried_ports) < 3:
            rivals.enter_context(socket.create_server(("127.0.0.1", invocation.record.ssh_port)))
            raise process.PortTakenError("QEMU did not start tiny")
        feigned.start(invocation)

    monkeypatch.setattr(process, "start", start_late)
    with contextlib.ExitStack() as rivals:
        record = Qemu(machine).start(to_start)
    assert 3 == len(set(tried_ports))
    assert tried_ports[-1] == record.ssh_port == machine.record().ssh_port

    tried_ports.clear()

    def never(invocation: Invocation) -> None:
        tried_ports.append(invocation.record.ssh_port)
        raise process.PortTakenError("taken")

    monkeypatch.setattr(process, "start", never)
    with refused(GuestError, "port-in-use"):
        Qemu(machine).start(to_start)
    assert 3 == len(tried_ports)


@pytest.mark.parametrize("error", [KeyboardInterrupt, KimboxError("no space"), OSError(28, "no space")])
def test_a_start_that_fails_leaves_the_ports_unlocked(
    feigned: Process, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """After any failure, another machine can get ports, and this one can be started."""

    def fail(_: Invocation) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(process, "start", fail)
        with pytest.raises((KeyboardInterrupt, KimboxError, OSError)):
            Qemu(feigned.machine).start(launch(feigned.machine))
    with locked(paths.machines_dir() / ".ports.lock"):
        pass
    Qemu(feigned.machine).start(launch(feigned.machine))
    assert ["start"] == feigned.did


def test_a_guest_that_does_not_shut_down_is_killed(feigned: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """kimbox presses the power button, and kills the process if that has no effect, fails, or is not requested."""
    qemu = Qemu(feigned.machine)

    def stopped(before: State, *, force: bool = False) -> list[str]:
        qemu.start(launch(feigned.machine))
        feigned.did.clear()
        qemu.stop(before, force=force, timeout_s=0.01)
        assert not feigned.machine.running
        return feigned.did

    assert ["power button"] == stopped(State.READY)
    assert ["kill"] == stopped(State.READY, force=True)
    feigned.on_power = False
    assert ["power button", "kill"] == stopped(State.READY)

    def mute(_: Machine) -> None:
        raise KimboxError("QEMU does not answer")

    monkeypatch.setattr(process, "unpause", mute)
    assert ["kill"] == stopped(State.PAUSED)


def test_a_saved_state_is_recorded_before_the_process_ends(feigned: Process) -> None:
    """If kimbox is killed in between, the record has the state. The scratch space stays, as the state includes it."""
    qemu = Qemu(feigned.machine)
    qemu.start(launch(feigned.machine))
    feigned.machine.scratch.touch()
    feigned.did.clear()
    qemu.suspend(lambda: feigned.did.append("recorded"))
    assert ["save", "recorded", "kill"] == feigned.did
    assert feigned.machine.scratch.exists()


def test_a_snapshot_of_a_machine_that_ran_is_resumed(feigned: Process) -> None:
    """QEMU ends, and starts from the tag of the snapshot. `resume` starts from the tag of the suspended state."""
    machine = feigned.machine
    qemu = Qemu(machine)
    qemu.start(launch(machine))
    feigned.did.clear()
    then = attrs.evolve(launch(machine, resume=True), record=attrs.evolve(machine.record(), ended=None))
    qemu.restore_snapshot(then, "one")
    assert ["kill", "resume", "continue"] == feigned.did
    assert "kimbox-snapshot-one" == feigned.started[-1].saved_state
    feigned.end()
    qemu.start(launch(machine, resume=True))
    assert disk.SUSPENDED_TAG == feigned.started[-1].saved_state


def test_a_resumed_guest_waits_until_the_record_says_so(feigned: Process) -> None:
    """A kimbox that is killed between the two leaves a paused guest, and not a state that is loaded twice."""

    def write(record: Record) -> None:
        feigned.did.append(f"the record of {record.name}")

    starting = attrs.evolve(launch(feigned.machine, resume=True), loaded=write)
    Qemu(feigned.machine).start(starting)
    assert ["resume", f"the record of {feigned.machine.name}", "continue"] == feigned.did
    assert ["-loadvm", disk.SUSPENDED_TAG, "-S"] == command(feigned.started[-1])[-3:]
    feigned.end()
    feigned.did.clear()
    Qemu(feigned.machine).start(attrs.evolve(launch(feigned.machine), loaded=write))
    assert ["start"] == feigned.did


def test_a_resumed_guest_has_the_devices_that_it_had(feigned: Process) -> None:
    """Each boot has the port that shuts the guest down. A state that an older kimbox saved resumes without it."""
    machine = feigned.machine
    assert not machine.record().halt_port
    Qemu(machine).start(launch(machine, resume=True))
    assert not feigned.started[-1].record.halt_port
    feigned.end()
    assert Qemu(machine).start(launch(machine)).halt_port
    assert feigned.started[-1].record.halt_port
    feigned.end()
    Qemu(machine).start(launch(machine, resume=True))
    assert feigned.started[-1].record.halt_port


def test_a_snapshot_of_a_halted_machine_has_only_a_disk(feigned: Process) -> None:
    """No process is started."""
    qemu = Qemu(feigned.machine)
    qemu.start(launch(feigned.machine))
    feigned.did.clear()
    qemu.restore_snapshot(launch(feigned.machine), "off")
    assert ["kill", "revert off"] == feigned.did


def test_a_halted_machine_has_no_scratch_space(feigned: Process) -> None:
    """Nor the files of an interrupted rotation of credentials."""
    for file in (feigned.machine.scratch, feigned.machine.rotate_file, feigned.machine.new_disk):
        file.touch()
        Qemu(feigned.machine).tidy()
        assert not file.exists()
    assert feigned.machine.disk.exists()


WORKER = Role(
    "worker", Gateway("10.0.2.2", 2222, ("k",)), (), (Outbound("a.org", 443), Outbound("::1", 9, "udp")), (), ()
)


@pytest.mark.parametrize(
    ("expected", "role", "dns", "can"),
    [
        ({443, 2222}, "worker", False, True),
        ({53, 443, 2222}, "worker", True, True),
        (set(), "gone", True, True),
        (None, "worker", False, False),
        (None, None, False, True),
    ],
)
def test_a_sealed_box_connects_to_ports_of_its_role(
    feigned: Process, monkeypatch: pytest.MonkeyPatch, expected: set[int] | None, role: str | None, dns: bool, can: bool
) -> None:
    """An open box connects to every port, and so does a sealed box if the kernel has no limits."""
    monkeypatch.setattr(driver, "limits_ports", lambda: can)
    sealed = Sealed(role, "a.org") if role else None
    secure = Secure("a.org", (WORKER,), (), dns, (), (), False)
    box = attrs.evolve(makebox.make_box(feigned.machine.folder), secure=secure)
    record = attrs.evolve(feigned.machine.record(), sealed=sealed)
    Qemu(feigned.machine).start(Launch(record, box, 1, 1 << 30))
    assert (None if expected is None else frozenset(expected)) == feigned.started[0].connects_to
    told = credentials(feigned.started[0]).get("connects_to")
    assert told == (None if expected is None else " ".join(map(str, sorted(expected))) or "none")


def test_a_sealed_box_reaches_its_networks_without_a_port_of_the_host(
    feigned: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ports of a gateway and of hosts in a network are not opened on 127.0.0.1 of the host."""
    monkeypatch.setattr(driver, "limits_ports", lambda: True)
    outbound = (Outbound("10.57.0.3", 5432), Outbound("192.0.2.1", 443))
    role = Role("worker", Gateway("10.57.0.1", 22, ("k",), "director"), (), outbound, (), ())
    box = attrs.evolve(
        makebox.make_box(feigned.machine.folder), secure=Secure("a.org", (role,), (), False, (), (), False)
    )
    network = Network("lan", "10.57.0.0/24", (("director", "10.57.0.1"), ("tiny", "10.57.0.2")))
    record = attrs.evolve(feigned.machine.record(), sealed=Sealed("worker", "a.org"), networks=(network,))
    Qemu(feigned.machine).start(Launch(record, box, 1, 1 << 30))
    assert frozenset({443}) == feigned.started[0].connects_to


def test_a_box_that_is_unsealed_connects_to_every_port(feigned: Process) -> None:
    """The same process runs on when it is open."""
    feigned.machine.unseal_mark.touch()
    secure = Secure("a.org", (WORKER,), (), False, (), (), False)
    box = attrs.evolve(makebox.make_box(feigned.machine.folder), secure=secure)
    record = attrs.evolve(feigned.machine.record(), sealed=Sealed("worker", "a.org"))
    Qemu(feigned.machine).start(Launch(record, box, 1, 1 << 30))
    assert feigned.started[0].connects_to is None


def test_an_interrupted_destroy_leaves_no_machine(feigned: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is removed first, so that a folder without its disk is never used as a machine."""
    qemu = Qemu(feigned.machine)
    qemu.start(launch(feigned.machine))
    feigned.did.clear()

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            qemu.destroy()
    assert ["kill"] == feigned.did
    assert State.ABSENT is state(feigned.machine)
    qemu.destroy()
    assert not feigned.machine.folder.exists()


def test_the_snapshots_of_a_disk(feigned: Process) -> None:
    """By the names of the users. A tag of another program is unchanged, and the suspended state is not a snapshot."""
    qcow2 = feigned.machine.disk
    run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "1M"])
    assert [] == Qemu(feigned.machine).disk_snapshots()
    for tag in (disk.snapshot_tag("one"), disk.SUSPENDED_TAG, "theirs"):
        run(["qemu-img", "snapshot", "-c", tag, qcow2])
    assert ["one", "theirs"] == Qemu(feigned.machine).disk_snapshots()
