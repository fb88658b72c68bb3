"""kimbox job: its actions, their output and their errors. No guest runs."""

from __future__ import annotations

from pathlib import Path

import clirun
import pytest
from clirun import Kimbox, error, result

from kimbox.actions.jobs import sweep
from kimbox.cli.job import ACTIONS

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def job(world: Path) -> Path:
    """The folder of a job, below the working directory."""
    folder = Path("job")
    (folder / "output").mkdir(parents=True)
    (folder / "run-job").write_text("#!/bin/sh\n")
    (folder / "run-job").chmod(0o755)
    (folder / "output/re\x1bsult").write_text("42\n")
    return folder


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_explains_itself(kimbox: Kimbox, action: str) -> None:
    """--help and -h give the same text, with examples."""
    code, out, err = kimbox("job", action, "--help")
    assert (0, "") == (code, err)
    assert f"Usage: kimbox job {action}" in out
    assert f"kimbox job {action}" in out.split("Examples:\n")[1]
    assert (0, out, "") == kimbox("job", action, "-h")


def test_the_actions_are_listed(kimbox: Kimbox) -> None:
    """`kimbox job` without an action shows them, and a wrong one is refused with a similar one."""
    code, out, _ = kimbox("job", "--help")
    assert 0 == code
    assert all(f"\n  {action}" in out for action in ACTIONS)
    code, out, _ = kimbox("job", "pakc", "--json")
    assert (2, "did you mean pack?") == (code, error(out, "job")["hint"])


def test_pack_and_extract(kimbox: Kimbox, job: Path) -> None:
    """The JSON has sizes and paths, and names that control a terminal are escaped."""
    code, out, _ = kimbox("job", "pack", "job", "disk", "--size", "2M", "--json")
    packed = result(out, "job")
    assert (0, 2 << 20, 2) == (code, packed["size_bytes"], packed["files"])
    assert packed["digest"].startswith("sha256:")
    code, out, _ = kimbox("job", "extract", "disk", "--list")
    assert 0 == code
    assert r"output/re\x1bsult" in out
    code, out, _ = kimbox("job", "extract", "disk", "--list", "--json")
    assert {"output", r"output/re\x1bsult", "run-job"} == {file["path"] for file in result(out, "job")["files"]}
    code, out, _ = kimbox("job", "extract", "disk", "out", "--only", "output", "--json")
    expected = {"path": "out", "files": 1, "size_bytes": 3, "skipped": [], "clean": True}
    assert (0, expected) == (code, result(out, "job"))
    assert "42\n" == Path("out/output/re\x1bsult").read_text()
    code, out, _ = kimbox("job", "extract", "disk", "--log", "--json")
    assert (5, "log-not-found") == (code, error(out, "job")["code"])


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ((2, "bad-size"), ["pack", "job", "disk", "--size", "1GiB"]),
        ((2, "usage"), ["pack", "job", "disk", "--size", "1G", "--room", "1G"]),
        ((1, "job-disk-too-small"), ["pack", "job", "disk", "--size", "1K"]),
        ((5, "file-not-found"), ["pack", "missing", "disk"]),
        ((5, "file-not-found"), ["extract", "missing", "out"]),
        ((2, "usage"), ["extract", "job/run-job"]),
        ((2, "usage"), ["extract", "job/run-job", "out", "--list"]),
        ((2, "bad-size"), ["extract", "job/run-job", "out", "--limit", "x"]),
        ((1, "disk-damaged"), ["extract", "job/run-job", "out"]),
    ],
)
def test_errors(kimbox: Kimbox, job: Path, expected: tuple[int, str], arguments: list[str]) -> None:
    """Each has its code and its exit status."""
    code, out, _ = kimbox("--json", "job", *arguments)
    assert expected == (code, error(out, "job")["code"])


def test_a_log_is_printed(kimbox: Kimbox, job: Path) -> None:
    """run-job.log; and if the job could not be started, run-job-failure.log."""
    (job / "run-job-failure.log").write_text("no interpreter\n")
    kimbox("job", "pack", "job", "failed")
    assert (0, "no interpreter\n\n", "") == kimbox("job", "extract", "failed", "--log")
    (job / "run-job.log").write_text("done\n")
    kimbox("job", "pack", "job", "done")
    assert (0, "done\n\n", "") == kimbox("job", "extract", "done", "--log")


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--retry-failed"], "usage", "--retry-failed needs --each"),
        (["-j", "2"], "usage", "-j needs --each"),
        (["--fail-fast"], "usage", "--fail-fast needs --each"),
        (["--each", "items", "--keep"], "usage", "--keep is for one job"),
        (["--each", "missing"], "usage", "file missing not found"),
        (["--each", "items"], "bad-items", "line 2 is the same as line 1"),
    ],
)
def test_a_sweep_that_cannot_begin(kimbox: Kimbox, job: Path, options: list[str], code: str, part: str) -> None:
    """It is refused before anything starts."""
    Path("items").write_text("a\na\n")
    status, out, _ = kimbox("job", "run", "job", "--box", "minimal", *options, "--json")
    found = error(out, "job")
    assert (2, code) == (status, found["code"])
    assert part in found["message"]
    assert not Path("job.out").exists()


def test_the_table_of_a_sweep(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    """A row for each item, also without results; names do not control the terminal, and one failure is no success."""
    records = {"a": {"verdict": "ok", "status": 0, "run_s": 1.25, "memory_peak_bytes": 3 << 20}, "b\x1b": None,
               "c": {"verdict": "failed", "status": 7, "run_s": None, "memory_peak_bytes": None}}  # fmt: skip

    def swept(request: sweep.SweepRequest) -> sweep.SweepDone:
        assert (2, True, ("x",)) == (request.at_a_time, request.retries_failed, request.job.arguments)
        return sweep.SweepDone(
            request.job.output, [sweep.Result(item, records[item.text]) for item in request.items], 2
        )

    monkeypatch.setattr(sweep, "sweep", swept)
    Path("items").write_bytes(b"a\nb\x1b\nc\n")
    words = ("job", "run", "job", "--box", "minimal", "--each", "items", "-j", "2", "--retry-failed")
    status, out, _ = kimbox(*words, "--", "x")
    lines = out.splitlines()
    assert 1 == status
    assert ["a", "ok", "0", "1.2", "s", "3.0", "MiB", "a"] == lines[1].split()
    assert lines[2].startswith("b\ufffd ")
    assert ["c", "failed", "7", "-", "-", "c"] == lines[3].split()
    assert "1 of 3 are ok" in lines[-1]
    status, out, _ = kimbox(*words, "--json", "--", "x")
    found = result(out, "job")
    assert (3, 1, 1, 1, 2) == tuple(found[key] for key in ("items", "ok", "not_ok", "missing", "ran"))
