"""`--set` and `--unset` on the command line, and the settings in the record of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import clirun
import makemachine
import pytest
from clirun import Kimbox, error, result

from kimbox.machine.folder import Machine
from kimbox.machine.state import State

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def boxes(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The boxes that `up` has got. Their machine gets a record with their settings."""
    kimbox("init", "--name", "study")
    seen: list[Any] = []

    def up(request: Any) -> State:
        box, machine = request.project.box, request.machine
        seen.append(box)
        if not machine.exists:
            makemachine.make_machine(box.name, source=str(box.source))
        machine.write_record(attrs.evolve(machine.record(), settings=box.settings))
        return State.ABSENT

    monkeypatch.setattr("kimbox.actions.up.up", up)
    return seen


def test_settings_stay(kimbox: Kimbox, boxes: list[Any]) -> None:
    """A later `up` has them, by name or by the spec of the folder. `status` shows them; --unset ends one."""
    assert 0 == kimbox("up", "--set", "memory=3GiB", "--set", "cpus=4")[0]
    assert 0 == kimbox("up")[0]
    assert 0 == kimbox("up", "study", "--set", "cpus=3")[0]
    assert 0 == kimbox("exec", "--up", "--", "true")[0] - 5  # the machine does not run
    assert [(3 << 30, 4), (3 << 30, 4), (3 << 30, 3), (3 << 30, 3)] == [(b.memory_bytes, b.cpus) for b in boxes]
    assert "  set         memory=3GiB\n  set         cpus=3\n" in kimbox("status")[1]
    assert 0 == kimbox("up", "--unset", "memory")[0]
    assert ["cpus=3"] == result(kimbox("--json", "status", "study")[1], "status")["settings"]


def test_a_lock_and_a_picture_are_those_of_the_spec(kimbox: Kimbox, boxes: list[Any]) -> None:
    """Verbs that write files for others use the spec as it is."""
    assert 0 == kimbox("up", "--set", "image.packages=[jq]")[0]
    assert "jq" in boxes[0].image.packages
    assert 0 == kimbox("lock")[0]
    assert "jq" not in Path("kimbox.lock").read_text()


@pytest.mark.parametrize(
    ("word", "exit_code", "code"),
    [("memory", 2, "usage"), ("name=other", 2, "usage"), ("memory=3GB", 3, "bad-spec"), ("memroy=3GiB", 3, "bad-spec")],
)
def test_a_wrong_setting(kimbox: Kimbox, boxes: list[Any], word: str, exit_code: int, code: str) -> None:
    """The error is that of the command line or of the spec, and nothing starts."""
    status, out, _ = kimbox("--json", "up", "--set", word)
    assert (exit_code, code) == (status, error(out, "up")["code"])
    assert [] == boxes
    assert not Machine("study").exists
    assert "usage" == error(kimbox("--json", "up", "--unset", "memory")[1], "up")["code"]
