"""kimbox job rerun: only the job of the record runs again, and every difference in its end or its results is told.

Spec, lock and plan are real. A double takes the place of the guest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clirun
import pytest
from clirun import Kimbox, error, result
from makejobrecord import make_folder, make_results, record_of

from kimbox.actions.jobs import run
from kimbox.actions.jobs.request import Done, RunRequest
from kimbox.files import json_bytes
from kimbox.jobs.record import RECORD
from kimbox.jobs.result import Outcome, Verdict
from kimbox.lock.lockfile import read_lock
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.spec.load import load_box

kimbox, world = clirun.kimbox, clirun.world  # fixtures

RESULTS = {"a.csv": b"1\n", "plots/p.png": b"png", "run.log": b"noon\n"}

#: Takes results and verdict of the second run; returns the requests with which it ran.
Guest = Callable[..., list[RunRequest]]


@pytest.fixture
def record(world: Path) -> Path:
    """The record of a job in the box of this folder, beside the folder of the job."""
    Path("kimbox.yaml").write_text("kimbox: 1\nname: tiny\n")
    plan = make_plan(Project(load_box(Path("kimbox.yaml"))))
    folder = make_folder(Path("study"))
    path = make_results(folder, Path("study.out"), RESULTS, plan.lock)
    edit(path, image=plan.image_key, manifest=plan.digest)
    return path


def edit(record: Path, **values: Any) -> None:
    """Changes values of a record."""
    record.write_bytes(json_bytes(json.loads(record.read_text()) | values))


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    """Replaces the guest by one that gives these results."""

    def give(output: dict[str, bytes], verdict: Verdict = Verdict(Outcome.OK, exit=0)) -> list[RunRequest]:  # noqa: B008
        requests: list[RunRequest] = []

        def ran(request: RunRequest) -> Done:
            requests.append(request)
            lock = read_lock(request.project.lock_path)
            make_results(request.folder, request.output, output, lock)
            return Done(verdict, request.output, record_of(request.folder, request.output, lock))

        monkeypatch.setattr(run, "run", ran)
        return requests

    return give


def test_equal_results(kimbox: Kimbox, record: Path, guest: Guest) -> None:
    """It runs with the arguments, the machine and the lock of the record, and ends with 0."""
    requests = guest(RESULTS)
    code, out, _ = kimbox("job", "rerun", str(record), "--json")
    assert 0 == code
    found = result(out, "job")
    assert (True, True, []) == (found["same"], found["ended_the_same"], found["differences"])
    (request,) = requests
    assert (("a b",), 1, 1 << 30, 60, 2 << 20, "none") == (
        request.arguments, request.cpus, request.memory_bytes, request.timeout_s, request.size_bytes,
        str(request.network),
    )  # fmt: skip
    assert ("study", "study.out.rerun") == (request.folder.name, request.output.name)
    assert request.project.lock_path == record.parent / "kimbox.lock"
    assert request.project.frozen


def test_the_lock_of_the_record_is_used(kimbox: Kimbox, record: Path, guest: Guest) -> None:
    """Also if the lock beside the spec is another one, which stays as it is."""
    requests = guest(RESULTS)
    Path("kimbox.lock").write_text("moved")
    assert 0 == kimbox("job", "rerun", str(record))[0]
    assert 1 == len(requests)
    assert "moved" == Path("kimbox.lock").read_text()


def test_each_difference_is_told(kimbox: Kimbox, record: Path, guest: Guest) -> None:
    """A result that is missing, changed or new, unless a pattern excludes it; the exit status is 118."""
    guest({"a.csv": b"2\n", "run.log": b"one\n", "ne\x1bw": b""})
    code, out, _ = kimbox("job", "rerun", str(record), "--json", "--ignore", "*.log")
    assert 118 == code
    expected = [("a.csv", "changed"), (r"ne\x1bw", "added"), ("plots/p.png", "missing")]
    assert expected == [(one["path"], one["kind"]) for one in result(out, "job")["differences"]]
    patterns = [word for pattern in ("a.*", "run.log", "plots", "ne*") for word in ("--ignore", pattern)]
    assert 0 == kimbox("job", "rerun", str(record), "--output", "again", *patterns)[0]
    code, out, _ = kimbox("job", "rerun", str(record), "--output", "third")
    assert 118 == code
    assert "changed  output/a.csv" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("expected", "verdict"),
    [
        (118, Verdict(Outcome.FAILED, exit=3)),
        (118, Verdict(Outcome.QUARANTINED, exit=0)),
        (121, Verdict(Outcome.TIMEOUT)),
        (125, Verdict(Outcome.HOST, reason="no memory")),
        (130, Verdict(Outcome.INTERRUPTED)),
    ],
)
def test_another_end(kimbox: Kimbox, record: Path, guest: Guest, expected: int, verdict: Verdict) -> None:
    """It is a difference, or the failure of the infrastructure."""
    guest(RESULTS, verdict)
    assert expected == kimbox("job", "rerun", str(record))[0]


def test_a_failure_that_comes_again(kimbox: Kimbox, record: Path, guest: Guest) -> None:
    """The same exit status and the same results are the same end."""
    edit(record, verdict="failed", exit=3)
    guest(RESULTS, Verdict(Outcome.FAILED, exit=3))
    assert 0 == kimbox("job", "rerun", str(record))[0]


def change_folder() -> None:
    Path("study/run-job").write_text("#!/bin/sh\nexit 1\n")
    Path("study/more").touch()


def change_spec() -> None:
    Path("kimbox.yaml").write_text("kimbox: 1\nname: tiny\nimage: {packages: [git]}\n")


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("more added, run-job changed", change_folder),
        ("the spec of the box tiny was changed", change_spec),
        ("the image of the box tiny is", lambda: edit(Path("study.out") / RECORD, image="0" * 64)),
        ("the box is tiny, and that of the record other", lambda: edit(Path("study.out") / RECORD, box="other")),
    ],
)
def test_what_cannot_run_as_before(
    kimbox: Kimbox, record: Path, guest: Guest, message: str, change: Callable[[], None]
) -> None:
    """Nothing runs, and the error names what differs."""
    requests = guest(RESULTS)
    change()
    code, out, _ = kimbox("job", "rerun", str(record), "-f", "kimbox.yaml", "--json")
    problem = error(out, "job")
    assert (5, "rerun-differs") == (code, problem["code"])
    assert message in problem["message"]
    assert [] == requests


def test_a_lock_that_was_edited(kimbox: Kimbox, record: Path, guest: Guest) -> None:
    """The record has its digest."""
    requests = guest(RESULTS)
    lock = record.parent / "kimbox.lock"
    lock.write_text(lock.read_text().replace("as_of: '20", "as_of: '19"))
    code, out, _ = kimbox("job", "rerun", str(record), "--json")
    assert (3, "bad-record") == (code, error(out, "job")["code"])
    assert [] == requests


def test_results_that_are_too_many_to_list(kimbox: Kimbox, record: Path, guest: Guest) -> None:
    """Those beside the record are compared, if their digest is that of the record."""
    output = json.loads(record.read_text())["output"]
    edit(record, output=output | {"files": None})
    guest(RESULTS | {"a.csv": b"2\n"})
    code, out, _ = kimbox("job", "rerun", str(record), "--json")
    assert (118, "a.csv") == (code, result(out, "job")["differences"][0]["path"])
    (record.parent / "output/a.csv").write_text("edited")
    code, out, _ = kimbox("job", "rerun", str(record), "--output", "again", "--json")
    assert (3, "bad-record") == (code, error(out, "job")["code"])


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ((5, "file-not-found"), ["missing.json"]),
        ((3, "bad-record"), ["kimbox.yaml"]),
        ((5, "file-not-found"), ["study.out/job.json", "missing"]),
        ((2, "usage"), ["study.out/job.json", "--ignore", "/"]),
    ],
)
def test_wrong_arguments(
    kimbox: Kimbox, record: Path, guest: Guest, expected: tuple[int, str], arguments: list[str]
) -> None:
    """Each has its code, before anything runs."""
    requests = guest(RESULTS)
    code, out, _ = kimbox("job", "rerun", *arguments, "--json")
    assert (*expected, []) == (code, error(out, "job")["code"], requests)
