"""`kimbox create` of a box: under a name of its own, with its own processors and memory, and a lifetime."""

from __future__ import annotations

from pathlib import Path

import makesaved
import pytest
from clirun import Kimbox, error
from clirun import kimbox as kimbox
from clirun import world as world

from kimbox.actions.up import UpRequest
from kimbox.machine.folder import Machine
from kimbox.machine.life import CREATED_LIFETIME_S, read_life
from kimbox.machine.record import Purpose
from kimbox.project.project import Project
from kimbox.spec.load import load_box

GIB = 1 << 30


def of_save(world: Path) -> Path:
    """A store with a save of a box."""
    return world / "store"


def test_of_a_save_with_another_shape(kimbox: Kimbox, world: Path) -> None:
    """Processors and memory of the command line are those of each start, whatever the spec says, and stay."""
    makesaved.make_saved(world)
    assert 0 == kimbox("save", "tiny", str(of_save(world)))[0]
    code, out, err = kimbox(
        "--json", "create", "big", "--from", str(of_save(world)), "--cores", "4", "--memory", "8GiB"
    )
    assert 0 == code, err + out
    record = Machine("big").record()
    assert ("cpus=4", "memory=8GiB") == record.settings
    box = load_box(Path(record.source), record.settings)
    request = UpRequest(Project(box, None), clone="big", purpose=Purpose.CLONE)
    assert (4, 8 * GIB) == (request.box.cpus, request.box.memory_bytes)
    life = read_life(Machine("big"))
    assert life.lifetime
    assert CREATED_LIFETIME_S == life.lifetime.length_s
    assert ("name-taken", True) == (
        (taken := error(kimbox("--json", "create", "big", "--from", str(of_save(world)))[1], "create"))["code"],
        "kimbox start big" in taken["hint"],
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["x", "--from", "minimal", "--memory", "8GB"], "bad-spec"),
        (["x", "--from", "minimal", "--memory", "1MiB"], "bad-spec"),
        (["x", "--from", "minimal", "--cores", "0"], "usage"),
        (["x", "--from", "minimal", "--save", "3"], "usage"),
        (["x", "--from", "minimol"], "box-not-found"),
        (["minimol"], "box-not-found"),
        (["../x", "--from", "minimal"], "bad-name"),
    ],
)
def test_what_is_refused(kimbox: Kimbox, world: Path, words: list[str], code: str) -> None:
    """Before anything is made, with a hint."""
    assert code == error(kimbox("--json", "create", *words)[1], "create")["code"]
    assert not (world / "home/machines/x").exists()
