"""`kimbox stop` saves what it shuts down, and `kimbox start` starts it again, from a name or from a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import makesaved
import pytest
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world

from kimbox.actions import stop, up
from kimbox.actions.saves.candidates import default_store
from kimbox.actions.up import UpRequest
from kimbox.files import remove_tree
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed
from kimbox.machine.state import State


@pytest.fixture
def machine(world: Path) -> Machine:
    """A halted box with a user's files, and its spec."""
    machine, spec = makesaved.make_saved(world), world / "kimbox.yaml"
    spec.write_text(json.dumps(makesaved.SPEC))
    machine.write_record(attrs.evolve(machine.record(), source=str(spec)))
    return machine


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done with guests, in order: halts and starts. No guest runs."""
    calls: list[str] = []

    def halt(machine: Machine, **_: Any) -> State:
        calls.append(f"halt {machine.name}")
        return State.READY

    def start(request: UpRequest) -> State:
        calls.append(f"up {request.machine.name}")
        return State.HALTED

    monkeypatch.setattr(stop, "halt", halt)
    monkeypatch.setattr(up, "up", start)
    return calls


def run(kimbox: Kimbox, *words: str) -> dict[str, Any]:
    """Runs a verb. Returns its result."""
    code, out, err = kimbox("--json", *words)
    assert 0 == code, err + out
    return dict(result(out, words[0]))


def test_stop_and_start_elsewhere(kimbox: Kimbox, machine: Machine, world: Path, done: list[str]) -> None:
    """`stop` says where the box is saved, and so do `list` and `status`. It starts from there under another name."""
    store = world / "store"
    stopped = run(kimbox, "stop", "tiny", "--url", str(store))
    assert ("tiny", "ready", str(store), 1) == tuple(stopped[key] for key in ("name", "before", "url", "number"))
    assert {"url": str(store), "number": 1, "at": stopped["saved_at"]} == run(kimbox, "status", "tiny")["saved"]
    assert str(store) in kimbox("list")[1]
    started = run(kimbox, "start", str(store), "--name", "other")
    assert "other" == started["name"]
    assert str(store) == started["saved"]["url"]
    assert ["halt tiny", "up other"] == done


def test_a_box_without_a_store(kimbox: Kimbox, machine: Machine, world: Path, done: list[str]) -> None:
    """It is saved in a folder of kimbox on this host, and starts by its name."""
    stopped = run(kimbox, "stop", "tiny")
    assert str(world / "home/saves/tiny") == stopped["url"]
    run(kimbox, "start", "tiny")
    assert 2 == run(kimbox, "stop", "tiny")["number"]
    assert ["halt tiny", "up tiny", "halt tiny"] == done


def test_what_cannot_be_saved_is_not_shut_down(kimbox: Kimbox, machine: Machine, world: Path, done: list[str]) -> None:
    """Neither for a store that does not answer, nor if it is sealed."""
    for url, code in (("http://127.0.0.1:1/x", "store-failed"), ("ftp://example.org/x", "bad-url")):
        assert code == error(kimbox("--json", "stop", "tiny", "--url", url)[1], "stop")["code"]
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "example.org")))
    assert "box-sealed" == error(kimbox("--json", "stop", "tiny")[1], "stop")["code"]
    assert [] == done


@pytest.mark.parametrize(
    ("words", "code"),
    [(["nobody"], "box-not-found"), (["tiny", "--name", "x"], "usage"), (["/nowhere", "-f", "x.yaml"], "usage")],
)
def test_what_start_refuses(kimbox: Kimbox, machine: Machine, done: list[str], words: list[str], code: str) -> None:
    """A box that is not here, with the commands that create it; and options that have no meaning."""
    status, out, _ = kimbox("--json", "start", *words)
    assert code == error(out, "start")["code"]
    assert 0 != status
    assert [] == done


def test_the_save_of_a_removed_box_is_named(
    kimbox: Kimbox, machine: Machine, world: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its save outlives it, and the hint has the command that creates the box from it. An empty folder is no save."""
    saves = default_store(machine)
    run(kimbox, "stop", "tiny")
    remove_tree(machine.folder)
    monkeypatch.chdir(world)
    hint = error(kimbox("--json", "start")[1], "start")["hint"]
    assert hint.startswith(f"`kimbox start {saves}` creates it ")
    remove_tree(saves)
    saves.mkdir()
    assert error(kimbox("--json", "start")[1], "start")["hint"].startswith("`kimbox create tiny ")
