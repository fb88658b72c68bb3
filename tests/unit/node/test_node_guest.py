"""How the runner follows a guest: its reports, its end, its silence."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kimbox.guest.events import parse_line
from kimbox.jobs.heartbeat import SILENCE_S, Heartbeat
from kimbox.jobs.order import Order
from kimbox.jobs.result import Outcome
from kimbox.node import guest
from kimbox.node.guest import Run

ID = "0123456789ab"


def event(**fields: str | int) -> bytes:
    return json.dumps({"event": "job", "boot": "", "uptime_s": 1.0, "id": ID, **fields}).encode()


def taken(run: Run, *lines: bytes) -> Heartbeat:
    """Gives events to a run; returns the heartbeat."""
    beat = Heartbeat(SILENCE_S, None)
    for line in lines:
        parsed = parse_line(line)
        assert parsed
        beat = guest._take(run, parsed, beat)
    return beat


def test_the_report_of_another_job_is_ignored(tmp_path: Path) -> None:
    """Only the id of this run counts."""
    run = Run(tmp_path, "ffffffffffff")
    taken(run, event(status="ended", code="exited", exit=0, result="success", full="no"))
    assert (None, None) == (run.reported, run.started_at)


def test_a_report_is_taken(tmp_path: Path) -> None:
    """After the start, which begins the heartbeat."""
    run = Run(tmp_path, ID)
    beat = taken(run, event(status="started", beat=5))
    assert run.started_at is not None
    assert not beat.is_silent(time.monotonic() + SILENCE_S - 1)
    assert beat.is_silent(time.monotonic() + SILENCE_S + 1)
    taken(run, event(status="ended", code="exited", exit=3, result="exit-code", full="no"))
    assert run.reported
    assert (3, "exit-code") == (run.reported.number, run.reported.result)


def test_a_guest_that_restarts_has_died(tmp_path: Path) -> None:
    """The program is not run again."""
    run = Run(tmp_path, ID)
    taken(run, event(status="failed", code="", exit=0, result="restarted", full="no", reason="again"))
    assert run.verdict
    assert (Outcome.GUEST_DIED, "again") == (run.verdict.outcome, run.verdict.reason)


@pytest.mark.parametrize(
    ("console", "started", "outcome", "reason"),
    [
        (b"[1] Kernel panic - not syncing: sysrq\r\n", True, Outcome.GUEST_DIED, "Kernel panic - not syncing: sysrq"),
        (b"", True, Outcome.GUEST_DIED, "before it reported"),
        (b"", False, Outcome.HOST, "no such machine"),
    ],
)
def test_the_end_without_a_report(tmp_path: Path, console: bytes, started: bool, outcome: Outcome, reason: str) -> None:
    """A guest that ran the program has died; before that, the node has failed, and QEMU has said why."""
    run = Run(tmp_path, ID)
    run.started_at = 1.0 if started else None
    (tmp_path / guest.CONSOLE).write_bytes(console)
    (tmp_path / guest.QEMU_LOG).write_text("no such machine\n")
    verdict = guest._verdict_on_end(run)
    assert outcome is verdict.outcome
    assert reason in verdict.reason


def test_a_guest_that_writes_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit of time ends it, although there is always more to read."""
    monkeypatch.setattr(guest.Tail, "read", lambda _: [parse_line(event(status="alive"))])
    monkeypatch.setattr(guest, "END_MARGIN_S", 0)
    run = Run(tmp_path, ID)
    order = Order([], [], "", 0, 0, "", False, 0o755, 0, False, timeout_s=0)
    guest._follow(run, order, lambda: None)
    assert run.verdict
    assert Outcome.TIMEOUT is run.verdict.outcome
