"""The verdict on a job: never a false success."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from kimbox.guest.events import Event
from kimbox.jobs.result import Outcome, Report, Verdict, judge, judge_alone

ID = "0123456789ab"

GOOD = Report(ID, "ended", "exited", 0, "success", False)


def verdict(reported: Report | None, stored: Report | None, *, unmounted: bool = True, off: bool = True) -> Verdict:
    return judge(ID, reported, stored, is_unmounted=unmounted, powered_off=off)


def test_a_success_needs_both_reports() -> None:
    """Both are there, agree, and the disk is unmounted. Without any of these the job is not ok."""
    assert Verdict(Outcome.OK, exit=0) == verdict(GOOD, GOOD)
    assert Outcome.LOST is verdict(None, GOOD).outcome
    assert Outcome.LOST is verdict(GOOD, None).outcome
    assert Outcome.LOST is verdict(None, None).outcome
    assert Outcome.LOST is verdict(GOOD, GOOD, unmounted=False).outcome
    assert Outcome.GUEST_DIED is verdict(None, None, off=False).outcome
    assert Outcome.GUEST_DIED is verdict(None, GOOD, off=False).outcome


CHANGES: dict[str, list[object]] = {
    "id": ["", "0123456789ac"], "state": ["started", "failed", ""], "code": ["killed", ""],
    "number": [1, None, 256, -1], "result": ["exit-code", "timeout", "oom-kill", "", "signal"], "is_full": [True],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in CHANGES.items() for value in row])
def test_no_other_report_is_a_success(name: str, value: object) -> None:
    """Each single difference, in one report or in both, gives another verdict."""
    other = replace(GOOD, **{name: value})
    for reported, stored in ((other, GOOD), (GOOD, other), (other, other)):
        assert Outcome.OK is not verdict(reported, stored).outcome


def test_nothing_but_the_one_combination_is_a_success() -> None:
    """Of all combinations of states, codes, numbers, results and disks only one is ok."""
    combinations = itertools.product(
        ("started", "ended", "failed"), ("exited", "killed", ""), (0, 1, 137, None),
        ("success", "exit-code", "signal", "timeout", "cannot-run", "oom-kill"), (False, True),
    )  # fmt: skip
    ok = [row for row in combinations if verdict(*[Report(ID, *row)] * 2).outcome is Outcome.OK]
    assert [("ended", "exited", 0, "success", False)] == ok


@pytest.mark.parametrize(
    ("changes", "expected", "status"),
    [
        ({"number": 7, "result": "exit-code"}, Verdict(Outcome.FAILED, exit=7), 7),
        ({"number": 122, "result": "exit-code"}, Verdict(Outcome.FAILED, exit=122), 120),
        ({"number": 126, "result": "exit-code"}, Verdict(Outcome.FAILED, exit=126), 126),
        ({"code": "killed", "number": 9, "result": "signal"}, Verdict(Outcome.FAILED, signal=9), 137),
    ],
)
def test_the_programs_own_end(changes: dict[str, object], expected: Verdict, status: int) -> None:
    """Its exit status comes back, and 128 and the number of the signal. 121 to 125 become 120."""
    report = replace(GOOD, **changes)
    found = verdict(report, report)
    assert (expected, status) == (found, found.status)


@pytest.mark.parametrize(
    ("changes", "expected", "status"),
    [
        ({"code": "killed", "number": 15, "result": "timeout"}, Outcome.TIMEOUT, 121),
        ({"number": 1, "result": "exit-code", "is_full": True}, Outcome.OUT_OF_SPACE, 123),
        ({"is_full": True}, Outcome.OUT_OF_SPACE, 123),
        ({"result": "oom-kill"}, Outcome.FAILED, 137),
        ({"state": "failed", "code": "", "number": None, "result": "cannot-run"}, Outcome.FAILED, 126),
        ({"state": "failed", "code": "", "number": None, "result": "restarted"}, Outcome.GUEST_DIED, 122),
        ({"code": "", "number": None}, Outcome.LOST, 124),
        ({"result": "resources"}, Outcome.LOST, 124),
    ],
)
def test_other_ends(changes: dict[str, object], expected: Outcome, status: int) -> None:
    """Each has its verdict and exit status."""
    report = replace(GOOD, **changes)
    found = verdict(report, report)
    assert (expected, status) == (found.outcome, found.status)


@pytest.mark.parametrize("result", ["not-ready", "no-disk"])
def test_a_guest_that_runs_no_program(result: str) -> None:
    """Then there is no disk with a status, and the box is at fault."""
    report = Report(ID, "failed", "", None, result, False, "why")
    assert Verdict(Outcome.HOST, reason="why") == verdict(report, None)
    assert Outcome.LOST is verdict(replace(report, id="other"), None).outcome


def test_both_forms_of_a_report() -> None:
    """The event and the file on the disk give the same report."""
    event = Event(
        "job", "", 1.0, {"id": ID, "status": "ended", "code": "exited", "exit": 3, "result": "exit-code", "full": "no"}
    )
    line = (
        b'{"id":"0123456789ab","state":"ended","code":"exited","exit":3,"result":"exit-code","full":"no",'
        b'"memory_peak_bytes":1875968,"cpu_ns":1500000000}      \n'
    )
    stored = Report.parse(line)
    assert stored is not None
    assert stored.says_the_same(Report.from_event(event))
    assert (1875968, 1.5) == (stored.memory_peak_bytes, stored.cpu_s)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"id": 1, "state": "ended"}',
        b"\0" * 100,
        b"[" * 4000,
        b'{"id":"a","state":"ended","code":[],"result":"","full":""}',
    ],
)
def test_other_bytes_are_no_report(line: bytes) -> None:
    """A guest may have written anything."""
    assert Report.parse(line) is None


def test_a_disk_that_comes_back_alone() -> None:
    """Under the VM universe there is one witness. Without it, or without an unmount, the job is not ok."""
    assert Verdict(Outcome.OK, exit=0) == judge_alone(GOOD, is_unmounted=True)
    assert Outcome.LOST is judge_alone(GOOD, is_unmounted=False).outcome
    assert Outcome.GUEST_DIED is judge_alone(None, is_unmounted=True).outcome
    assert Outcome.GUEST_DIED is judge_alone(replace(GOOD, state="started"), is_unmounted=True).outcome
    assert (Outcome.FAILED, 3) == (
        (found := judge_alone(replace(GOOD, number=3, result="exit-code"), is_unmounted=True)).outcome,
        found.exit,
    )
    failed = replace(GOOD, state="failed", code="", number=None, result="cannot-run")
    assert Outcome.FAILED is judge_alone(failed, is_unmounted=True).outcome
