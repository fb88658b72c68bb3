"""The verbs of saves, run on a halted box with a user's files. `machine` and `store` are fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import makesaved
import pytest
from clirun import Kimbox, error, result

from kimbox.machine.folder import Machine


@pytest.fixture
def machine(world: Path) -> Machine:
    """A halted box with a user's files."""
    return makesaved.make_saved(world)


@pytest.fixture
def store(world: Path) -> Path:
    """The folder of the store, which does not exist yet."""
    return world / "store"


def saved(kimbox: Kimbox, store: Path, *words: str) -> Any:
    """Saves the box. Returns the result."""
    code, out, err = kimbox("--json", "save", "tiny", str(store), *words)
    assert 0 == code, err + out
    return result(out, "save")


def refused(kimbox: Kimbox, *words: str) -> dict[str, Any]:
    """Runs a verb that fails. Returns the error."""
    code, out, _ = kimbox("--json", *words)
    problem = error(out, words[0])
    assert code == problem["exit_code"] != 0
    return problem
