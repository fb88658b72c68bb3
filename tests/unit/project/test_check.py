"""The check of a lock: errors have the codes of the faults, and a missing lock has its own."""

from __future__ import annotations

from pathlib import Path

import makebox
import pytest
from refused import refused

from kimbox.errors import Problem, SpecError, StateError
from kimbox.lock.check import LockFaults
from kimbox.project.check import check_lock_file, image_key, raise_faults
from kimbox.project.project import Project


def test_faults_of_one_code_give_the_error_this_code() -> None:
    """Faults of several codes give `bad-spec`. Every fault keeps its own code. Without faults nothing is raised."""
    moved = Problem("a.lock", 3, 1, "the spec has changed", code="lock-disagrees")
    missing = Problem("a.lock", 9, 5, "commit not found", code="commit-not-found")
    raise_faults(LockFaults(notes=["a note"]), "run this")
    for problems, code in (
        ([moved], "lock-disagrees"),
        ([missing], "commit-not-found"),
        ([moved, missing], "bad-spec"),
    ):
        with refused(SpecError, code) as failed:
            raise_faults(LockFaults(problems), "run this")
        assert (problems, "run this") == (failed.value.problems, failed.value.hint)


def test_a_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint has the command that writes the lock, with the name of a box that ships with kimbox."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    box = makebox.make_box(tmp_path)
    path = str(Project(box).lock_path)
    with refused(SpecError, "lock-not-found", path=path) as failed:
        check_lock_file(Project(box))
    assert "`kimbox lock`" in failed.value.message
    for shipped, command in ((None, "`kimbox build`"), (box.name, f"`kimbox build {box.name}`")):
        project = Project(box, shipped)
        with refused(StateError, "lock-not-found", name=box.name, path=str(project.lock_path)) as without_image:
            image_key(project)
        assert command in str(without_image.value.hint)
