"""The process of QEMU: how it starts, saves its state and ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import invocations
import makemachine
import pytest
from invocations import invoked, values
from refused import refused

from kimbox import run
from kimbox.drivers.qemu import disk, process, qmp
from kimbox.drivers.qemu.command import command
from kimbox.errors import GuestError
from kimbox.machine.folder import Machine
from kimbox.spec.model import Scratch

machine = invocations.machine  # a fixture


def test_a_shutdown_is_requested_by_port_and_button(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request writes one line. Neither a missing or unread pipe nor a guest that fills it delays the button."""
    presses: list[str] = []
    monkeypatch.setattr(qmp, "execute", lambda _, name: presses.append(name))
    monkeypatch.setattr(process, "wait_until_gone", lambda *_: len(presses) > 3)

    def requested() -> list[str]:
        presses.clear()
        with makemachine.running(machine):
            assert process.power_off(machine, 60)
        return presses

    four = ["system_powerdown"] * 4
    assert four == requested()
    os.mkfifo(machine.halt_pipe)
    assert four == requested()
    reader = os.open(machine.halt_pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert four == requested()
        assert b"poweroff\n" * 4 == os.read(reader, 1 << 16)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(reader, bytes(4096))
        assert four == requested()
    finally:
        os.close(reader)


def test_scratch_space_is_new_at_every_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot has an empty one, a resume that of the last run. Without scratch space in the spec, it is removed."""
    seen: list[bytes | None] = []

    def detach(*_: object, **__: object) -> Callable[[], None]:
        seen.append(machine.scratch.read_bytes() if machine.scratch.exists() else None)
        return lambda: None

    monkeypatch.setattr(process, "detach", detach)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: "running")
    machine.scratch.write_bytes(b"of a run that crashed")
    with_scratch = attrs.evolve(invoked(machine), scratch=Scratch(32 << 20, "/staging"))
    process.start(attrs.evolve(with_scratch, saved_state=disk.SUSPENDED_TAG))
    process.start(with_scratch)
    process.start(invoked(machine))
    resumed, booted, without = seen
    assert (b"of a run that crashed", None) == (resumed, without)
    assert booted is not None
    assert booted.startswith(b"QFI\xfb")
    assert 32 << 20 == int.from_bytes(booted[24:32], "big")  # the virtual size in a qcow2's header
    assert b"crashed" not in booted
    assert [] == list(machine.folder.glob("scratch*"))


def test_a_suspend_saves_every_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is in the box's own disk. `-loadvm` later requires the state in each writable disk."""
    devices = [("disk0", "#block1"), ("scratch0", "#block2")]
    jobs: list[tuple[str, dict[str, object]]] = []

    def execute(_: Path, command: str, **__: object) -> object:
        return [{"device": d, "inserted": {"node-name": n}} for d, n in devices] if command == "query-block" else None

    monkeypatch.setattr(qmp, "execute", execute)
    monkeypatch.setattr(qmp, "run_job", lambda _, job, arguments, **__: jobs.append((job, arguments)))
    disk.suspend(machine)
    assert ["snapshot-delete", "snapshot-save"] == [job for job, _ in jobs]
    assert [["#block1", "#block2"]] * 2 == [arguments["devices"] for _, arguments in jobs]
    assert "#block1" == jobs[1][1]["vmstate"]
    devices.pop()
    disk.forget_suspended(machine)
    assert ["#block1"] == jobs[2][1]["devices"]
    devices.clear()
    with refused(GuestError, "unexpected-output", name="tiny"):
        disk.forget_suspended(machine)


@pytest.mark.parametrize("failing", ["stop", "snapshot-save"])
def test_a_guest_that_cannot_be_saved_runs_on(machine: Machine, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """If its processors do not stop in time, or its state cannot be written."""
    did: list[str] = []

    def fake_command(_: Path, command: str, *__: object, **___: object) -> object:
        did.append(command)
        if command == failing:
            raise qmp.QmpError("too slow", code="timeout")
        return [{"device": "disk0", "inserted": {"node-name": "#block1"}}] if command == "query-block" else None

    monkeypatch.setattr(qmp, "execute", fake_command)
    monkeypatch.setattr(qmp, "run_job", fake_command)
    with refused(qmp.QmpError, "timeout"):
        disk.suspend(machine)
    assert ["stop", "cont"] == [command for command in did if command in ("stop", "cont")]


def test_qemu_writes_no_core_dump(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core dump would contain the keys of a sealed box. The limit is that of the started program."""
    started: list[list[str]] = []
    monkeypatch.setattr(process, "detach", lambda argv, **_: started.append([*map(str, argv)]))
    monkeypatch.setattr(process, "require", lambda *_: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: "running")
    process.start(invoked(machine))
    ((*wrapper, program), arguments) = started[0][:4], started[0][4:]
    assert "qemu-system-x86_64" == program
    assert values(arguments, "-machine")[0].endswith(",dump-guest-core=off")
    limits = run.run([*wrapper, "sh", "-c", "ulimit -S -c; ulimit -H -c"]).stdout
    assert ["0", "0"] == limits.split()


def test_a_resumed_box_continues_its_logs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot starts new logs and keeps the last ones. A resume appends, because the guest repeats nothing."""
    monkeypatch.setattr(process, "detach", lambda *a, **k: lambda: None)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: "running")
    makemachine.tell(machine, makemachine.event("ready"))
    process.start(invoked(machine, resume=True))
    assert ["ready"] == [event.name for event in machine.boot_events()]
    assert not machine.halt_pipe.exists()
    machine.write_record(attrs.evolve(machine.record(), halt_port=True))
    assert ["kimbox-suspend"] == values(command(invoked(machine, resume=True)), "-loadvm")
    process.start(invoked(machine))
    assert () == machine.boot_events()
    assert machine.events_file.with_name("events.jsonl.1").read_text() == makemachine.event("ready")
    assert "-loadvm" not in command(invoked(machine))
    assert machine.halt_pipe.is_fifo()


def test_the_end_of_the_log_of_qemu_is_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any size of the log, its end is in the message, and the memory is bounded."""

    def detach(*_: object, **__: object) -> Callable[[], int]:
        machine.qemu_log.write_bytes(b"x" * (1 << 20) + b" no such device\n")
        return lambda: 1

    monkeypatch.setattr(process, "detach", detach)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: None)
    with refused(GuestError, "qemu-failed", name="tiny") as caught:
        process.start(invoked(machine))
    assert caught.value.message.endswith(" no such device")
    assert len(caught.value.message) < 2 * process.LOG_END_BYTES


def test_a_second_process_is_refused_before_its_logs_are_touched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process still writes to them."""
    monkeypatch.setattr(process, "LOCK_WAIT_S", 0.0)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    makemachine.tell(machine, makemachine.event("ready"))
    with makemachine.running(machine), refused(GuestError, "wrong-state", name="tiny", state="running"):
        process.start(invoked(machine))
    assert ["ready"] == [event.name for event in machine.boot_events()]


def test_a_status_does_not_stop_a_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kimbox status` of another process holds the run lock, shared, for a moment."""
    with machine.run_lock.open("w") as shared:
        fcntl.flock(shared, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(shared, fcntl.LOCK_UN))
        with machine.run_lock.open("w") as exclusive:
            process._lock(exclusive.fileno(), machine)
            assert machine.running


def test_qemu_does_not_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its output is in the message, and the run lock is released."""

    def exited(arguments: list[str], *, log: Path, **_: object) -> object:
        log.write_text("qemu-system-x86_64: cannot set up guest memory\n")
        return lambda: 1

    monkeypatch.setattr(process, "detach", exited)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    with refused(GuestError, "qemu-failed", name="tiny") as caught:
        process.start(invoked(machine))
    assert re.search(r"exit status 1\n.*cannot set up guest memory", caught.value.message)
    assert not machine.running


def test_only_the_machines_own_process_is_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid file with another process, or with invalid content, is ignored."""
    with makemachine.running(machine):
        for text in (str(os.getpid()), "", "-1", "0", "x" * 100, "999999999"):
            machine.pid_file.write_text(text)
            assert process.pid(machine) is None
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(process, "wait_until_gone", lambda *_: False)
    monkeypatch.setattr(process, "pid", lambda _: 999999999)
    monkeypatch.setattr(os, "kill", lambda *call: ended.append(call))
    with refused(GuestError, "timeout", name="tiny", path=str(machine.run_lock)):
        process.kill(machine)
    assert [(999999999, signal.SIGTERM), (999999999, signal.SIGKILL)] == ended


def test_a_qmp_socket_without_an_answer(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket does not exist, or it accepts and sends nothing."""
    with refused(qmp.QmpError, "qemu-unreachable", path=str(tmp_path / "no")):
        qmp.execute(tmp_path / "no", "query-status")
    far = tmp_path / ("long" * 50)  # unix(7) allows a path of 107 bytes
    far.mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        monkeypatch.chdir(far)
        mute.bind("mute")
        mute.listen()
        with refused(qmp.QmpError, "timeout", path=str(far / "mute")):
            qmp.execute(far / "mute", "query-status", timeout_s=0.2)
    assert process.status(machine) is None


def test_the_message_of_qemu_for_a_port_in_use(tmp_path: Path) -> None:
    """kimbox detects it by this message, which comes from a real QEMU."""
    with socket.create_server(("127.0.0.1", 0)) as rival:
        forward = f"user,id=net0,hostfwd=tcp:127.0.0.1:{rival.getsockname()[1]}-:22"
        argv = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-netdev", forward]
        done = run.run(argv, check=False, timeout_s=60)
    assert not done.ok
    assert process.NO_FORWARD in done.stderr
