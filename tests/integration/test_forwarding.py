"""Ports of a guest that are forwarded while a program listens: the script in the guest, and what the host does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import attrs
import makemachine
import pytest
from waiting import until

from kimbox import paths
from kimbox.filelocks import is_locked, locked
from kimbox.machine import forwarding, ports
from kimbox.machine.folder import Machine
from kimbox.machine.forwarding import Forwards, forwards_of, reported
from kimbox.machine.record import Sealed
from kimbox.run import Completed, stream

SCRIPT = paths.provisioners_dir() / "provision/listening"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that appears to run, with a forward of the spec."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    machine = makemachine.make_machine(auto_forwards=True, forwards={8000: 20900})
    with makemachine.running(machine):
        yield machine


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The changes that ssh is asked for, in place of ssh. It refuses port 20022 of the host."""
    made: list[str] = []

    def run(argv: list[str], **_: object) -> Completed:
        command, option = argv[argv.index("-O") + 1], argv[argv.index("-L") + 1]
        is_refused = ":20022:" in option
        made.append(f"{command} {option}" + (" refused" if is_refused else ""))
        return Completed(255 if is_refused else 0, "", "")

    monkeypatch.setattr(forwarding, "run", run)
    monkeypatch.setattr(forwarding, "SETTLE_S", 0)
    return made


def test_the_script_reports_what_listens() -> None:
    """On 127.0.0.1, ::1 or all addresses: at first, and when it has changed."""

    def watch() -> Generator[None, str]:
        """Gets each line of the script."""
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "")):
            with socket.create_server((address, 0), family=family) as server:
                port = server.getsockname()[1]
                while port not in (reported((yield)) or set()):
                    pass
            while port in (reported((yield)) or {port}):
                pass

    watching = watch()
    next(watching)
    with pytest.raises(StopIteration):
        stream(["sh", "-c", SCRIPT.read_text()], on_line=watching.send)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("listening", set()),
        ("listening 1F90 0BB8", {8080, 3000}),
        ("listening 0016 0000 FFFF", {65535}),
        ("listening 1f90", None),
        ("listening 1F90 ", None),
        ("listening 127.0.0.2:1F90", None),
        ("", None),
        ("Warning: listening 1F90", None),
        ("listening" + " 1F90" * 5000, {8080}),
    ],
)
def test_reports(line: str, found: set[int] | None) -> None:
    """Four hex digits each. Everything else that a guest prints is no report."""
    assert found == reported(line)


def test_forwards_follow_the_reports(machine: Machine, changes: list[str]) -> None:
    """At the same port if that is free and from 1024 on, and on 127.0.0.1 alone. A forward of the spec stays."""
    forwards = Forwards(machine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = taken.getsockname()[1]
        forwards.take(f"listening 0050 {other:04X} 1F40 1F41")
    assert [] == [change for change in changes if not change.split()[1].startswith("127.0.0.1:")]
    assert {80, 8001, other} == set(forwards.held)
    assert 8001 == forwards.held[8001]
    assert min(forwards.held[80], forwards.held[other]) >= 20023
    assert 3 == len(set(forwards.held.values()))
    changes.clear()
    forwards.take("listening 1F41")
    forwards.take("nonsense")
    forwards.take("listening 1F41")
    assert {8001: 8001} == forwards.held
    assert ["cancel", "cancel"] == [change.split()[0] for change in changes]
    changes.clear()
    forwards.forget()
    forwards.take("listening 1F41")
    assert ["forward 127.0.0.1:8001:localhost:8001"] == changes


def test_a_guest_gets_a_limited_number(
    machine: Machine, changes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it reports. So is the number of messages about it."""
    monkeypatch.setattr(forwarding, "MAX_MESSAGES", 2)
    forwards = Forwards(machine)
    forwards.take("listening" + "".join(f" {port:04X}" for port in range(30000, 30900)))
    assert forwarding.MAX_FORWARDS == len(forwards.held)
    assert forwarding.MAX_FORWARDS == len([change for change in changes if "refused" not in change])
    for port in range(31000, 31010):
        forwards.take(f"listening {port:04X}" + "".join(f" {port:04X}" for port in range(30000, 30900)))
    assert 2 == len(capsys.readouterr().err.splitlines())


def test_a_guest_that_ends_the_connection_starts_few_programs(
    machine: Machine, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reports many ports before: ssh fails for each of them."""
    run = forwarding.run
    monkeypatch.setattr(forwarding, "run", lambda argv, **_: Completed(255, run(argv).stdout, ""))
    forwards = Forwards(machine)
    forwards.take("listening" + "".join(f" {port:04X}" for port in range(30000, 30900)))
    assert {} == forwards.held
    assert forwarding.MAX_FAILURES * forwarding.ATTEMPTS == len(changes)


def test_ports_of_other_boxes_are_left(machine: Machine, changes: list[str]) -> None:
    """Another box has that port, although it does not run."""
    makemachine.make_machine("other", ssh_port=ports.AUTO_PORTS[1], forwards={80: 9000})
    forwards = Forwards(machine)
    forwards.take("listening 2328")
    assert forwards.held[9000] > ports.AUTO_PORTS[1]


def test_only_a_box_that_asks_has_the_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a sealed one. The forwards in its file count only while the process runs."""
    started: list[list[str]] = []
    monkeypatch.setattr(forwarding, "detach", lambda argv, **_: started.append(argv) or (lambda: 0))
    record = machine.record()
    assert forwarding.is_down(machine, record)
    assert not forwarding.is_down(machine, attrs.evolve(record, sealed=Sealed("worker", "example.org")))
    assert not forwarding.is_down(machine, attrs.evolve(record, auto_forwards=False))
    with monkeypatch.context() as patch:
        patch.setattr(Machine, "is_locked_by_another", lambda _: True)
        assert not forwarding.is_down(machine, record)
    (machine.folder / forwarding.STATE).write_text('{"80": 20080}')
    assert {} == forwards_of(machine)
    forwarding.ensure(machine, attrs.evolve(record, sealed=Sealed("worker", "example.org")))
    forwarding.ensure(machine, attrs.evolve(record, auto_forwards=False))
    assert [] == started
    forwarding.ensure(machine, record)
    assert [["kimbox.machine.forwarding", "tiny"]] == [argv[-2:] for argv in started]
    with locked(machine.folder / forwarding.LOCK):
        assert {"80": 20080} == forwards_of(machine)
        assert not forwarding.is_down(machine, record)
        forwarding.ensure(machine, record)
    assert 1 == len(started)


def test_a_process_that_is_killed_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the box. No ssh server answers here."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    machine = makemachine.make_machine(auto_forwards=True)
    lock = machine.folder / forwarding.LOCK
    with makemachine.running(machine):
        forwarding.ensure(machine, machine.record())
        until("it runs", lambda: is_locked(lock))
        killed = process_of(machine)
        assert killed
        os.kill(killed, signal.SIGKILL)
        until("it runs again", lambda: process_of(machine) not in (None, killed) and is_locked(lock))
    until("it has ended", lambda: not is_locked(lock) and process_of(machine) is None)


def process_of(machine: Machine) -> int | None:
    """The process that forwards the ports of a machine; None if it does not run."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            home = f"KIMBOX_HOME={os.environ['KIMBOX_HOME']}"
            argv = (entry / "cmdline").read_text().split("\0")
            environ = (entry / "environ").read_text().split("\0")
            if argv[0] == sys.executable and forwarding.__name__ in argv and home in environ:
                return int(entry.name)
    return None
