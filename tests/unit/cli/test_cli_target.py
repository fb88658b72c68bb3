"""The box or the machine that a name on the command line stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox, error

from kimbox.machine.state import State

kimbox, world = clirun.kimbox, clirun.world  # fixtures


def test_the_name_of_the_spec_in_this_folder(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stands for ./kimbox.yaml, so that the hint of `kimbox ssh`, `kimbox up study`, works."""
    kimbox("init", "--name", "study")
    assert "`kimbox up study`" in kimbox("ssh")[2]
    projects: list[Any] = []

    def up(request: Any) -> State:
        project = request.project
        projects.append((project.source, project.shipped))
        makemachine.make_machine("study", source=str(project.source))
        return State.ABSENT

    monkeypatch.setattr("kimbox.actions.up.up", up)
    assert 0 == kimbox("status", "study")[0]
    assert 0 == kimbox("up", "study")[0]
    assert [(Path("kimbox.yaml").absolute(), None)] == projects


@pytest.mark.parametrize("verb", ["status", "up", "build", "provision"])
def test_an_unknown_name(kimbox: Kimbox, verb: str) -> None:
    """The error has a similar name: of a machine, or of a shipped box."""
    makemachine.make_machine("study")
    for name, similar in {"studdy": "study", "minimall": "minimal"}.items():
        code, out, err = kimbox(verb, name)
        assert (5, "") == (code, out)
        assert f"did you mean {similar}?" in err
        failed = error(kimbox("--json", verb, name)[1], verb)
        assert ("box-not-found", {"name": name}) == (failed["code"], failed["fields"])


@pytest.mark.parametrize("text", ["", "[", "- a", "name: [x]", "a: &x [*x]", "\0", "5", "name:"])
def test_an_invalid_spec_in_this_folder(kimbox: Kimbox, text: str) -> None:
    """It does not prevent the use of a shipped box by its name."""
    Path("kimbox.yaml").write_text(text)
    assert (0, "minimal: absent\n", "") == kimbox("status", "minimal")


def test_reload_does_not_halt_the_box_of_another_spec(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It checks the owner of the machine before it halts the machine."""
    kimbox("init", "--name", "study")
    makemachine.make_machine("study", source="/theirs/kimbox.yaml")
    calls: list[Any] = []
    monkeypatch.setattr("kimbox.actions.stop.halt", calls.append)
    assert 5 == kimbox("reload")[0]
    assert [] == calls
