"""Which box a name means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox

from kimbox.machine.state import State

kimbox, world = clirun.kimbox, clirun.world  # fixtures


def test_the_name_of_the_spec_in_this_folder_means_it(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hint of `kimbox ssh` says can be done: `kimbox up study` where ./kimbox.yaml is that box."""
    kimbox("init", "--name", "study")
    assert "`kimbox up study`" in kimbox("ssh")[2]
    called: list[Any] = []

    def note(request: Any) -> State:
        project = request.project
        called.append((project.source, project.shipped))
        makemachine.make_machine("study", source=str(project.source))
        return State.ABSENT

    monkeypatch.setattr("kimbox.actions.up.up", note)
    assert 0 == kimbox("status", "study")[0]
    assert 0 == kimbox("up", "study")[0]
    assert [(Path("kimbox.yaml").absolute(), None)] == called


@pytest.mark.parametrize("verb", ["status", "up", "build", "provision"])
def test_a_name_that_nothing_has(kimbox: Kimbox, verb: str) -> None:
    """Is an error that says what may be meant: a machine, or a shipped box."""
    makemachine.make_machine("study")
    for given, meant in {"studdy": "study", "minimall": "minimal"}.items():
        code, out, err = kimbox(verb, given)
        assert (5, "") == (code, out)
        assert f"there is no box {given}" in err
        assert f"did you mean {meant}?" in err


@pytest.mark.parametrize("text", ["", "[", "- a", "name: [x]", "a: &x [*x]", "\0", "5", "name:"])
def test_a_broken_spec_here_does_not_stand_in_the_way(kimbox: Kimbox, text: str) -> None:
    """Of a shipped box that is named."""
    Path("kimbox.yaml").write_text(text)
    assert (0, "minimal: absent\n", "") == kimbox("status", "minimal")


def test_reload_does_not_halt_the_box_of_another_spec(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks whose the box is before, not after."""
    kimbox("init", "--name", "study")
    makemachine.make_machine("study", source="/theirs/kimbox.yaml")
    halted: list[Any] = []
    monkeypatch.setattr("kimbox.actions.stop.halt", halted.append)
    assert 5 == kimbox("reload")[0]
    assert [] == halted
