"""`kimbox maintain`: its options, its errors, and the machine that it starts. No guest runs."""

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


def make_maintenance_machine() -> Machine:
    """Creates the halted machine for the maintenance of the box."""
    source = str(Path("kimbox.yaml").absolute())
    return makemachine.make_machine("study-maintain", source=source, box="study", purpose=Purpose.MAINTENANCE)


def test_it_boots_another_machine(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine boots in maintain mode, without the ports and the scratch space of the box."""
    requests: list[Any] = []

    def up(request: Any) -> State:
        requests.append(request)
        make_maintenance_machine()
        return State.ABSENT

    monkeypatch.setattr("kimbox.actions.up.up", up)
    assert {"name": "study-maintain", "state": "halted"} == result(kimbox("--json", "maintain")[1], "maintain")
    (request,) = requests
    assert (Purpose.MAINTENANCE, BootMode.MAINTAIN) == (request.purpose, request.boot.mode)
    box = request.project.box
    assert ("study", (), None) == (box.name, box.forwards, box.scratch)


def test_its_name_is_not_a_box_to_start(kimbox: Kimbox) -> None:
    """The verbs that take a spec refuse the name of this machine. `halt` accepts it."""
    make_maintenance_machine()
    for verb in ("up", "reload", "provision", "maintain"):
        code, out, _ = kimbox("--json", verb, "study-maintain")
        assert 5 == code
        assert "`kimbox maintain study`" in error(out, verb)["hint"]
    assert 0 == kimbox("halt", "study-maintain")[0]


def test_discard(kimbox: Kimbox) -> None:
    """It removes the machine of the maintenance only. A second call has nothing to do."""
    maintenance = make_maintenance_machine()
    other = makemachine.make_machine("study", source=str(Path("kimbox.yaml").absolute()))
    assert 0 == kimbox("maintain", "--discard")[0]
    assert (False, True) == (maintenance.exists, other.exists)
    assert (0, "study has no maintenance to discard\n", "") == kimbox("maintain", "--discard")


def test_what_cannot_be_committed(kimbox: Kimbox) -> None:
    """No machine, a name that exists, an invalid name, and options that exclude or require each other are errors."""
    code, out, _ = kimbox("--json", "maintain", "--commit", "new")
    assert (5, "wrong-state") == (code, error(out, "maintain")["code"])
    maintenance = make_maintenance_machine()
    names.write(AddedBox("new", "a" * 64, None, "elsewhere"))
    code, out, _ = kimbox("--json", "maintain", "--commit", "new")
    assert (5, "name-in-use") == (code, error(out, "maintain")["code"])
    assert "--force" in error(out, "maintain")["hint"]
    for options, expected in (
        (["--commit", "a b"], "bad-name"),
        (["--commit", "../x"], "bad-name"),
        (["--commit", "x", "--discard"], "usage"),
        (["--force"], "usage"),
    ):
        code, out, _ = kimbox("--json", "maintain", *options)
        assert (2, expected) == (code, error(out, "maintain")["code"]), options
    assert maintenance.exists
