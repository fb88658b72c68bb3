"""`kimbox maintain`: what it refuses, and which machine it means. No guest runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox, error, result

from kimbox.image.store import names
from kimbox.image.store.names import AddedBox
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose
from kimbox.machine.state import State
from kimbox.spec.model import BootMode

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture(autouse=True)
def study(kimbox: Kimbox, world: Path) -> None:
    """A spec in this folder."""
    kimbox("init", "--name", "study")


def maintained() -> Machine:
    """A halted machine in which it is maintained."""
    source = str(Path("kimbox.yaml").absolute())
    return makemachine.make_machine("study-maintain", source=source, box="study", purpose=Purpose.MAINTENANCE)


def test_it_boots_a_machine_of_its_own(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """In maintain mode, without the ports and the scratch space of the box."""
    asked: list[Any] = []

    def note(request: Any) -> State:
        asked.append(request)
        maintained()
        return State.ABSENT

    monkeypatch.setattr("kimbox.actions.up.up", note)
    told = result(kimbox("--json", "maintain")[1], "maintain")
    assert {"name": "study-maintain", "state": "halted"} == told
    (request,) = asked
    assert (Purpose.MAINTENANCE, BootMode.MAINTAIN) == (request.purpose, request.boot.mode)
    box = request.project.box
    assert ("study", (), None) == (box.name, box.forwards, box.scratch)


def test_its_name_is_no_box_to_bring_up(kimbox: Kimbox) -> None:
    """`up` would give it the spec's other machine; halt and destroy know what is meant."""
    maintained()
    for verb in ("up", "reload", "provision", "maintain"):
        code, out, _ = kimbox("--json", verb, "study-maintain")
        assert 5 == code
        assert "`kimbox maintain study`" in error(out, verb)["hint"]
    assert 0 == kimbox("halt", "study-maintain")[0]


def test_discard(kimbox: Kimbox) -> None:
    """It removes the machine, and only that one; a second time there is nothing to do."""
    made, other = maintained(), makemachine.make_machine("study", source=str(Path("kimbox.yaml").absolute()))
    assert 0 == kimbox("maintain", "--discard")[0]
    assert (False, True) == (made.exists, other.exists)
    assert (0, "nothing of study was being maintained\n", "") == kimbox("maintain", "--discard")


def test_what_cannot_be_committed(kimbox: Kimbox) -> None:
    """Nothing that was begun; a name that is none, or is taken; both ends at once."""
    code, out, _ = kimbox("--json", "maintain", "--commit", "new")
    assert (5, "wrong-state") == (code, error(out, "maintain")["code"])
    made = maintained()
    names.write(AddedBox("new", "a" * 64, None, "elsewhere"))
    code, out, _ = kimbox("--json", "maintain", "--commit", "new")
    assert (5, "name-in-use") == (code, error(out, "maintain")["code"])
    assert "--force" in error(out, "maintain")["hint"]
    for words in (["--commit", "a b"], ["--commit", "../x"], ["--commit", "x", "--discard"], ["--force"]):
        assert 2 == kimbox("maintain", *words)[0]
    assert made.exists
