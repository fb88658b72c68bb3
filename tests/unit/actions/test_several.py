"""Verbs for several boxes: order of needs, failures, and the prefix of lines. A fake runner replaces the children."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from kimbox.actions import several
from kimbox.log import log
from kimbox.spec.members import Member

#: worker needs director and disk, viewer needs worker.
MEMBERS = (Member("disk"), Member("director"), Member("worker", ("director", "disk")), Member("viewer", ("worker",)))

Show = Callable[[str], None]


class FakeRunner:
    """Records starts and ends. Boxes in `bad` fail."""

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.did: list[str] = []
        self.lock = threading.Lock()
        self.most = self.now = 0

    def __call__(self, name: str, show: Show) -> dict[str, Any]:
        with self.lock:
            self.did.append(f"start {name}")
            self.now += 1
            self.most = max(self.most, self.now)
        show(f"booting {name}")
        with self.lock:
            self.now -= 1
            self.did.append(f"end {name}")
        if name in self.bad:
            error = {"code": "timeout", "message": "too slow", "hint": "wait", "exit_code": 4}
            return {"error": error}
        return {"result": {"name": name}}


def test_each_box_starts_after_those_that_it_needs() -> None:
    """The results are in the order of the boxes."""
    runner = FakeRunner()
    results = several.run_all(MEMBERS, runner, workers=4)
    assert [member.name for member in MEMBERS] == list(results) == [r["name"] for r in results.values()]
    for member in MEMBERS:
        for need in member.needs:
            assert runner.did.index(f"end {need}") < runner.did.index(f"start {member.name}")


def test_as_many_as_allowed_run_side_by_side() -> None:
    """Two that need nothing wait for each other here; with one worker they run one after the other."""
    barrier = threading.Barrier(2, timeout=30)

    def meet(name: str, show: Show) -> dict[str, Any]:
        barrier.wait()
        return {"result": {}}

    several.run_all((Member("a"), Member("b")), meet, workers=2)
    runner = FakeRunner()
    several.run_all((Member("a"), Member("b"), Member("c")), runner, workers=1)
    assert 1 == runner.most


def test_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the box does not start, the others do, and the error has the exit code and the name."""
    monkeypatch.setattr(log, "stream", None)
    runner = FakeRunner("director")
    with pytest.raises(several.SeveralError) as caught:
        several.run_all(MEMBERS, runner, workers=2)
    assert {"start disk", "start director"} == {did for did in runner.did if did.startswith("start")}
    error = caught.value
    assert ("several-failed", 4, {"director": "timeout"}) == (error.code, error.exit_code, dict(error.fields))
    assert "director: too slow (wait)" == error.message
    err = capsys.readouterr().err
    assert "worker was left out, because director failed" in err
    assert "viewer was left out, because worker failed" in err


def test_a_child_without_a_result() -> None:
    """It was killed, for example."""
    with pytest.raises(several.SeveralError, match="ended without a result"):
        several.run_all((Member("a"),), lambda name, show: {}, workers=1)


def test_each_line_has_the_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are aligned, and a line of a guest cannot control the terminal."""
    monkeypatch.setattr(log, "stream", None)

    def show_all(name: str, show: Show) -> dict[str, Any]:
        show(f"  of {name}\x1b[31m")
        return {"result": {}}

    several.run_all((Member("a"), Member("long")), show_all, workers=1)
    assert ["a    |   of a\ufffd[31m", "long |   of long\ufffd[31m"] == capsys.readouterr().err.splitlines()


def test_the_order_of_halt() -> None:
    """Each box after those that need it."""
    ordered = several.reversed_needs(MEMBERS)
    assert {"disk": {"worker"}, "director": {"worker"}, "worker": {"viewer"}, "viewer": set()} == {
        member.name: set(member.needs) for member in ordered
    }
    runner = FakeRunner()
    several.run_all(ordered, runner, workers=4)
    assert runner.did.index("end viewer") < runner.did.index("start worker") < runner.did.index("start disk")


def test_the_answer_is_separated_from_other_output() -> None:
    """The object at the end is the answer, and all lines before it are shown."""
    shown: list[str] = []
    answer = several._Answer(shown.append)
    for line in ["booting ...", "  | {", "", "{", '  "kimbox": 1,', '  "result": {}', "}", "late"]:
        answer.take(line)
    assert ({"kimbox": 1, "result": {}}, ["booting ...", "  | {", "late"]) == (answer.value(), shown)
