"""kimbox job run with several boxes: each has its results, and a table compares them."""

from __future__ import annotations

from pathlib import Path

import clirun
import pytest
from clirun import Kimbox, error, result
from makejobrecord import make_folder, make_results, record_of

from kimbox.actions.jobs import run
from kimbox.actions.jobs.request import Done, RunRequest
from kimbox.errors import ImageError
from kimbox.jobs.result import Outcome, Verdict

kimbox, world = clirun.kimbox, clirun.world  # fixtures

#: What the job gives in each box.
OUTPUT = {
    "minimal": {"a.csv": b"1\n", "b": b"2\n"},
    "openkim-dev": {"a.csv": b"1\n", "b": b"3\n", "c": b""},
}


@pytest.fixture
def ran(world: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folder `job`, and a double of the run: the boxes in which the job ran. openkim-worker cannot be made."""
    make_folder(Path("job"))
    boxes: list[str] = []

    def run_in(request: RunRequest) -> Done:
        name = request.project.name
        boxes.append(name)
        if name not in OUTPUT:
            raise ImageError("there is no image", code="image-failed")
        make_results(request.folder, request.output, OUTPUT[name])
        return Done(Verdict(Outcome.OK, exit=0), request.output, record_of(request.folder, request.output))

    monkeypatch.setattr(run, "run", run_in)
    return boxes


def test_results_are_compared(kimbox: Kimbox, ran: list[str]) -> None:
    """Each box has a folder; the results that differ from those of the first box are named."""
    words = ("job", "run", "job", "--box", "minimal", "--box", "openkim-dev")
    code, out, _ = kimbox(*words, "--json")
    assert (0, ["minimal", "openkim-dev"]) == (code, ran)
    first, second = result(out, "job")["boxes"]
    assert [] == first["differences"]
    assert [("b", "changed"), ("c", "added")] == [(one["path"], one["kind"]) for one in second["differences"]]
    assert first["output"] != second["output"]
    assert b"3\n" == Path("job.out/openkim-dev/output/b").read_bytes()
    code, out, _ = kimbox(*words)
    assert 5 == code  # the folder exists
    _, out, _ = kimbox(*words, "--output", "again")
    row = out.splitlines()[2].split()
    assert ["openkim-dev", "ok", "0", "2.0", "s"] == row[:5]
    assert ["b,", "c"] == row[6:]


def test_a_box_that_cannot_be_made(kimbox: Kimbox, ran: list[str]) -> None:
    """It has a verdict with the reason, and the others run."""
    code, out, _ = kimbox("job", "run", "job", "--box", "openkim-worker", "--box", "minimal", "--json")
    first, second = result(out, "job")["boxes"]
    assert (1, "host", 125, "there is no image", None) == (
        code, first["verdict"], first["status"], first["reason"], first["job"]
    )  # fmt: skip
    assert ("ok", ["openkim-worker", "minimal"]) == (second["verdict"], ran)


@pytest.mark.parametrize("more", [["--box", "minimal"], ["--each", "-"], ["-f", "x.yaml"], ["--keep"]])
def test_what_does_not_go_together(kimbox: Kimbox, ran: list[str], more: list[str]) -> None:
    """Nothing runs."""
    code, out, _ = kimbox("job", "run", "job", "--box", "minimal", "--box", "openkim-dev", *more, "--json")
    assert (2, "usage", []) == (code, error(out, "job")["code"], ran)
