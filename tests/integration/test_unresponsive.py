"""A machine whose QEMU does not answer: each verb says so, and halt and destroy end it. With a real QEMU."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import bootsector
import makemachine
import pytest
from refused import refused

from kimbox.actions import observe, stop
from kimbox.drivers.qemu import process
from kimbox.errors import StateError
from kimbox.machine.folder import Machine
from kimbox.machine.state import State


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that was ready, and whose QEMU is stopped now."""
    monkeypatch.setattr(process, "ANSWER_TIMEOUT_S", 0.5)
    with bootsector.running(tmp_path, monkeypatch, bootsector.IDLE) as machine:
        makemachine.tell(machine, makemachine.event("ready"))
        assert State.READY is observe.state(machine)
        pid = process.pid(machine)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        yield machine
        if machine.running:
            os.kill(pid, signal.SIGCONT)


def test_a_stopped_qemu_is_unresponsive(machine: Machine) -> None:
    """Its last event says ready. No verb that needs the guest waits for it."""
    assert State.UNRESPONSIVE is observe.state(machine)
    with refused(StateError, "wrong-state", name=machine.name, state="unresponsive") as caught:
        observe.reach(machine, "exec")
    assert f"kimbox halt --force {machine.name}" in (caught.value.hint or "")


def test_halt_ends_it(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    assert State.UNRESPONSIVE is stop.halt(machine)
    assert State.HALTED is observe.state(machine)
    assert "does not answer" in capfd.readouterr().err


def test_destroy_ends_it(machine: Machine) -> None:
    assert stop.destroy(machine)
    assert State.ABSENT is observe.state(machine)


def test_a_machine_at_which_another_process_works_is_not_unresponsive(machine: Machine) -> None:
    """QEMU has one client at a time, and the other process may be that client, during a suspend."""
    pid = process.pid(machine)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with machine.locked():
            os.write(writer, b"l")
            threading.Event().wait()
    try:
        assert b"l" == os.read(reader, 1)
        assert State.READY is observe.state(machine)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
    assert pid == process.pid(machine)
    assert State.UNRESPONSIVE is observe.state(machine)
