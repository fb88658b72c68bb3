"""`kimbox list` of many machines."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox, result

from kimbox import run
from kimbox.cli.list_ import MAX_OBSERVERS
from kimbox.drivers.qemu import process
from kimbox.machine.folder import Machine

kimbox, world = clirun.kimbox, clirun.world  # fixtures


def test_a_machine_that_does_not_run_costs_no_process_and_no_socket(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fifty machines, one runs: QEMU of this one is asked, once, and nothing is started."""
    for number in range(50):
        makemachine.tell(makemachine.make_machine(f"m{number:02}"), makemachine.event("booting"))
    asked: list[str] = []

    def ask(machine: Machine) -> str:
        asked.append(machine.name)
        return "running"

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process or a socket")

    monkeypatch.setattr(process, "status", ask)
    for module, name in ((run, "run"), (run, "stream"), (run, "background"), (socket, "socket")):
        monkeypatch.setattr(module, name, refuse)
    with makemachine.running(Machine("m07")):
        code, out, _ = kimbox("--json", "list")
    assert code == 0
    boxes = result(out, "list")["boxes"]
    assert [f"m{number:02}" for number in range(50)] == [box["name"] for box in boxes]
    assert {"halted": 49, "booting": 1} == {
        state: sum(box["state"] == state for box in boxes) for state in ("halted", "booting")
    }
    assert asked == ["m07"]


def test_machines_that_do_not_answer_wait_at_the_same_time(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for its QEMU in a thread of its own: all of them meet there."""
    meeting = threading.Barrier(MAX_OBSERVERS)
    machines = [makemachine.make_machine(f"m{number}") for number in range(MAX_OBSERVERS)]

    def ask(machine: Machine) -> None:
        meeting.wait(30)

    monkeypatch.setattr(process, "status", ask)
    with contextlib.ExitStack() as stack:
        for machine in machines:
            stack.enter_context(makemachine.running(machine))
        code, out, _ = kimbox("--json", "list")
    assert code == 0
    assert [machine.name for machine in machines] == [box["name"] for box in result(out, "list")["boxes"]]


def test_a_machine_that_cannot_be_read_hides_no_other(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of links in place of its record, or a disk that fails while its events are read."""
    for name in ("good", "looped", "failing"):
        makemachine.make_machine(name)
    record = Machine("looped").record_file
    record.unlink()
    record.symlink_to(record.name)
    real = Machine.boot_events

    def fail(machine: Machine) -> Any:
        if machine.name == "failing":
            raise OSError(errno.EIO, "Input/output error")
        return real(machine)

    monkeypatch.setattr(Machine, "boot_events", fail)
    code, out, err = kimbox("--json", "list")
    assert (0, ["good"]) == (code, [box["name"] for box in result(out, "list")["boxes"]])
    assert "failing cannot be read: [Errno 5] Input/output error" in err
