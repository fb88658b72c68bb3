"""The stages of a start, from events and from what the host has observed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import makemachine
import pytest

from kimbox.guest.events import Event, Tail
from kimbox.machine.folder import Machine
from kimbox.machine.timeline import MAX_STAGES, Loading, observe_loading, timeline

BOOT = makemachine.BOOT

#: When QEMU starts in these tests, in seconds since the epoch.
QEMU_S = 1_000_000.0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return makemachine.make_machine()


def event(name: str, uptime_s: float, **fields: str | int) -> Event:
    return Event(name, BOOT, uptime_s, fields)


def stages_of(events: list[Event], loading: Loading | None = None) -> list[tuple[str, float]]:
    """Name and begin of each stage."""
    found = timeline(events, loading)
    assert found is not None
    return [(stage["name"], stage["start_s"]) for stage in found["stages"]]


def test_from_the_start_of_qemu_to_ready() -> None:
    """Each stage begins where the one before ends, and what comes after `ready` is not part of the start."""
    booting = event("booting", 4.0, mode="keep", initramfs="1.50", root="2.5", early="3.9")
    events = [booting, event("sshd", 5.0), event("ready", 6.0), event("sshd", 9.0)]
    found = timeline(events, Loading(BOOT, 1.5, 0.5))
    assert found is not None
    assert ("QEMU", "ready", 7.5, 0) == tuple(found[key] for key in ("zero", "result", "total_s", "left_out"))
    assert [
        ("firmware", 0.0),
        ("boot loader", 0.5),
        ("kernel", 1.5),
        ("initramfs", 3.0),
        ("systemd starts", 4.0),
        ("ports to the host", 5.4),
        ("system starts", 5.5),
        ("ssh server runs", 6.5),
    ] == [(stage["name"], stage["start_s"]) for stage in found["stages"]]
    assert [stage["end_s"] for stage in found["stages"][:-1]] == [stage["start_s"] for stage in found["stages"][1:]]


def test_without_what_the_host_observes() -> None:
    """The times begin with the kernel. What was observed of another boot does not count."""
    events = [event("booting", 4.0, mode="keep"), event("ready", 6.0)]
    assert [("kernel and initramfs start", 0.0), ("system starts", 4.0)] == stages_of(events)
    assert stages_of(events) == stages_of(events, Loading("another", 1.5, 0.5))
    assert ("firmware and boot loader", 0.0) == stages_of(events, Loading(BOOT, 1.5, None))[0]
    assert timeline([], Loading(BOOT, 1.5, None)) is None


@pytest.mark.parametrize("text", ["-1", "nan", "1e9", "9" * 99, "1.5 ", "x"])
def test_a_guest_that_lies(text: str) -> None:
    """A field that is no time is ignored, and no stage begins before the one before, or after its event."""
    assert [("kernel and initramfs start", 0.0), ("system starts", 4.0)] == stages_of(
        [event("booting", 4.0, initramfs=text)]
    )
    lies = event("booting", 4.0, initramfs="3", root="2", early="99")
    assert [0.0, 3.0, 3.0, 4.0, 4.0] == [at_s for _, at_s in stages_of([lies])]
    step = {"status": "running", "n": 1, "of": 999, "kind": "provision", "name": "x"}
    many = [Event("step", BOOT, 9.0, {**step}) for _ in range(999)]
    found = timeline(many, None)
    assert found is not None
    assert (MAX_STAGES, 1000 - MAX_STAGES) == (len(found["stages"]), found["left_out"])


def observe(machine: Machine, at_s: float, *, console_at_s: float | None = None, unread: int = 0) -> Loading | None:
    """Lets the host observe a guest whose last event, of uptime 3.0 s, arrives `at_s` seconds after QEMU's start."""
    machine.loading_file.unlink(missing_ok=True)
    machine.events_file.unlink(missing_ok=True)
    makemachine.tell(machine, makemachine.event("booting", uptime_s=2.5), makemachine.event("hostkey", uptime_s=3.0))
    machine.pid_file.touch()
    os.utime(machine.pid_file, (QEMU_S, QEMU_S))
    os.utime(machine.events_file, (QEMU_S + at_s, QEMU_S + at_s))
    tail = Tail(machine.events_file)
    events = tail.read()
    observe_loading(machine, events, tail.offset - unread, console_at_s)
    return Loading.read(machine)


def test_the_host_observes_the_start_of_the_kernel(machine: Machine) -> None:
    """It is the time at which an event arrived, without the guest's own time in it. A wrong clock is not believed."""
    assert Loading(BOOT, 1.25, 0.5) == observe(machine, 4.25, console_at_s=QEMU_S + 0.5)
    assert Loading(BOOT, 1.25, None) == observe(machine, 4.25)
    assert Loading(BOOT, 1.25, None) == observe(machine, 4.25, console_at_s=QEMU_S - 5)
    assert observe(machine, 2.0) is None
    assert observe(machine, 1e5) is None
    assert observe(machine, 4.25, unread=1) is None
    machine.pid_file.unlink()
    observe_loading(machine, [event("booting", 2.5)], 0, None)
    assert not machine.loading_file.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"boot": "x", "kernel_s": "y", "console_s": null}'])
def test_a_damaged_file(machine: Machine, content: Any) -> None:
    """The timeline begins with the kernel then."""
    machine.loading_file.write_text(content)
    assert Loading.read(machine) is None
