"""kimbox exec: its arguments, and what happens before and after the command."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox, environment, error

from kimbox.actions import observe, stop
from kimbox.cli import target
from kimbox.guest.endpoint import Endpoint
from kimbox.machine.folder import Machine
from kimbox.run import Completed
from kimbox.run import run as run_program

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ((None, ["a"]), ["--", "a"]),
        (("box", ["a", "-b"]), ["box", "--", "a", "-b"]),
        (("box", ["a", "b"]), ["box", "a", "b"]),
        ((None, ["a", "--", "b"]), ["--", "a", "--", "b"]),
        (("box", ["a", "--up", "-f"]), ["--up", "box", "--", "a", "--up", "-f"]),
        (("box", ["box"]), ["box", "--", "box"]),
        ((None, ["a  b", ""]), ["--", "a  b", ""]),
    ],
)
def test_exec_separates_box_and_command(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, expected: tuple[str | None, list[str]], arguments: list[str]
) -> None:
    """With and without `--`. The guest's shell gets the same words."""
    calls: list[Any] = []

    def execute(_: Endpoint, command: list[str], **__: Any) -> int:
        calls.append(command)
        return 42

    monkeypatch.setattr(target, "machine", lambda name, file: calls.append(name))
    monkeypatch.setattr(target, "project", lambda *_, **__: None)
    monkeypatch.setattr("kimbox.actions.up.up", lambda *_: calls.append("up"))
    monkeypatch.setattr(observe, "reach", lambda *_, **__: makemachine.make_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.execute", execute)
    assert 42 == kimbox("exec", *arguments)[0]
    assert [*expected] == [call for call in calls if call != "up"]
    assert ("up" in calls) is (arguments[0] == "--up")


@pytest.mark.parametrize(
    ("runs", "ssh_status", "can_start", "expected"),
    [(False, 0, True, "connection-lost"), (True, 255, True, "connection-lost"), (True, 0, False, "too-many-processes"),
     (True, 0, True, "")],
    ids=["the box has stopped", "it does not answer", "it cannot start a program", "it was the program"],
)  # fmt: skip
def test_exec_detects_a_lost_connection(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, runs: bool, ssh_status: int, can_start: bool, expected: str
) -> None:
    """ssh exits with 255 if the connection fails. A program may exit with 255, too."""
    machine = makemachine.make_machine()
    retired: list[Path] = []
    monkeypatch.setattr(observe, "reach", lambda *_, **__: makemachine.make_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.attached", lambda *_, **__: 255)
    monkeypatch.setattr("kimbox.guest.shared.run", lambda *_, **__: Completed(ssh_status, "", ""))
    monkeypatch.setattr("kimbox.guest.shared.can_start", lambda _: can_start)
    monkeypatch.setattr("kimbox.guest.shared.retire", retired.append)
    with makemachine.running(machine) if runs else contextlib.nullcontext():
        code, out, _ = kimbox("--json", "exec", "tiny", "--", "false")
        shell_code = kimbox("ssh", "tiny")[0]
    assert (4 if expected else 255, [] if can_start else [machine.folder] * 2) == (code, retired)
    assert (255 if can_start else 4) == shell_code
    if expected:
        assert (expected, {"name": "tiny"}) == (error(out, "exec")["code"], error(out, "exec")["fields"])
    else:
        assert "" == out


def test_exec_without_stdin(world: Path) -> None:
    """A closed stdin is an empty one: the error is that of the box, and no bug."""
    command = f"{shlex.quote(sys.executable)} -m kimbox exec nobox -- true <&-"
    done = run_program(["sh", "-c", command], check=False, env=environment(world))
    assert (5, "") == (done.code, done.stdout)


@pytest.mark.parametrize("arguments", [[], ["--"], ["box"], ["box", "--"], ["a", "b", "--", "c"], ["box", "ls", "-v"]])
def test_exec_without_a_command(kimbox: Kimbox, arguments: list[str]) -> None:
    """No command, two boxes, and an option of the program before `--` are usage errors."""
    code, out, _ = kimbox("--json", "exec", *arguments)
    failed = error(out, "exec")
    assert (2, "usage") == (code, failed["code"])
    assert "--" in (failed["hint"] or "") or {"names": "a b"} == failed["fields"]


@pytest.mark.parametrize("status", [0, 3, KeyboardInterrupt])
def test_exec_shuts_the_box_down(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    """With --halt, when the command has ended in any way. The exit status is that of the command."""
    halted: list[str] = []

    def execute(*_: Any, **__: Any) -> int:
        assert [] == halted
        if isinstance(status, int):
            return status
        raise status

    monkeypatch.setattr(target, "machine", lambda *_: Machine("tiny"))
    monkeypatch.setattr(observe, "reach", lambda *_, **__: makemachine.make_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.execute", execute)
    monkeypatch.setattr(stop, "halt", lambda machine: halted.append(machine.name))
    assert (130 if status is KeyboardInterrupt else status) == kimbox("exec", "--halt", "tiny", "--", "x")[0]
    assert ["tiny"] == halted
