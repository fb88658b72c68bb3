"""How a job is followed, with a driver whose guest says what a test tells it to say."""

from __future__ import annotations

from pathlib import Path

import makemachine
import pytest
from makemachine import event, tell

from kimbox.actions.jobs import follow as following
from kimbox.actions.jobs.request import Job
from kimbox.drivers import registry
from kimbox.guest.events import Event, Tail
from kimbox.jobs import heartbeat
from kimbox.jobs.result import Outcome
from kimbox.jobs.terms import Inputs, Terms
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.machine.state import Observation

ID = "0123456789ab"


class Guest:
    """A driver. Each time that kimbox looks, the guest sends the next of `lines`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.lines: list[str] = []
        self.is_alive_at_end = True
        self.is_paused = self.is_unresponsive = False

    def listen(self) -> bool:
        if not self.lines:
            return self.is_alive_at_end
        tell(self.machine, self.lines.pop(0))
        return True

    def observe(self, record: Record) -> Observation:
        return Observation(True, True, self.is_paused, False, (), ended_by_us=False, unresponsive=self.is_unresponsive)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    monkeypatch.setattr(following, "POLL_INTERVAL_S", 0.001)
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.05)
    guest = Guest(makemachine.make_machine("tiny"))
    monkeypatch.setattr(registry, "of", lambda machine: guest)
    return guest


def job_of(guest: Guest, *, timeout_s: int | None = None, keep: bool = False) -> Job:
    return Job(Terms(Path(), Path(), timeout_s=timeout_s, keep=keep), ID, guest.machine, Inputs({}, ""))


def followed(guest: Guest, *lines: str, timeout_s: int | None = None) -> Job:
    guest.lines = list(lines)
    job = job_of(guest, timeout_s=timeout_s)
    following.follow(job)
    return job


STARTED = event("job", id=ID, status="started", beat="5")
ALIVE = event("job", id=ID, status="alive")
ENDED = event("job", id=ID, status="ended", code="exited", exit=3, result="exit-code", full="no")


def test_the_report_is_the_end(guest: Guest) -> None:
    """The guest need not shut down: the disk was unmounted before. Events of other jobs do not count."""
    job = followed(guest, STARTED, event("job", id="ba9876543210", status="ended"), ALIVE, ENDED)
    assert (3, None, True) == (job.reported and job.reported.number, job.verdict, job.is_finished)


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        ("[ 1.0] Kernel panic - not syncing: no\x1b[1m\n" + "[ 1.0] stack\n" * 50, "Kernel panic - not syncing: no"),
        ("[ 1.0] all is well\n", "before it reported"),
    ],
)
def test_a_guest_that_ends_early(guest: Guest, console: str, reason: str) -> None:
    guest.machine.serial_log.write_text(console)
    guest.is_alive_at_end = False
    verdict = followed(guest, STARTED).verdict
    assert verdict
    assert Outcome.GUEST_DIED is verdict.outcome
    assert reason in verdict.reason
    assert "\x1b" not in verdict.reason


def test_a_guest_that_shuts_down_without_a_report_has_not_died(guest: Guest) -> None:
    """How its program ended is not known: the reports are compared."""
    guest.machine.serial_log.write_text("[ 1.0] reboot: Power down\n")
    guest.is_alive_at_end = False
    job = followed(guest, STARTED)
    assert (None, None, False) == (job.verdict, job.reported, job.is_finished)


@pytest.mark.parametrize(
    ("paused", "unresponsive", "outcome", "reason"),
    [
        (False, False, Outcome.GUEST_DIED, "the guest hangs"),
        (False, True, Outcome.GUEST_DIED, "QEMU does not answer"),
        (True, False, Outcome.HOST, "the disk of this host may be full"),
    ],
)
def test_a_guest_that_falls_silent(
    guest: Guest, paused: bool, unresponsive: bool, outcome: Outcome, reason: str
) -> None:
    """Without a time limit. What QEMU says tells why."""
    guest.is_paused, guest.is_unresponsive = paused, unresponsive
    verdict = followed(guest, STARTED, ALIVE).verdict
    assert verdict
    assert outcome is verdict.outcome
    assert reason in verdict.reason


def test_a_restart_is_a_death(guest: Guest) -> None:
    verdict = followed(guest, event("job", id=ID, status="failed", result="restarted", reason="it restarted")).verdict
    assert verdict
    assert (Outcome.GUEST_DIED, "it restarted") == (verdict.outcome, verdict.reason)


def test_the_time_limit_of_the_host(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a guest that is alive and does not end its program."""
    monkeypatch.setattr(following, "END_MARGIN_S", -1.0)
    verdict = followed(guest, event("job", id=ID, status="started"), timeout_s=1).verdict
    assert verdict
    assert Outcome.TIMEOUT is verdict.outcome


def test_a_job_that_is_to_end(guest: Guest) -> None:
    job = job_of(guest)
    job.stopping.set()
    following.follow(job)
    assert job.verdict
    assert Outcome.INTERRUPTED is job.verdict.outcome


def test_a_guest_that_writes_without_end(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit of time ends it, although there is always more to read."""
    monkeypatch.setattr(following, "END_MARGIN_S", 0)
    monkeypatch.setattr(Tail, "read", lambda _: [Event("x", "b", 1.0, {})])
    verdict = followed(guest, timeout_s=0).verdict
    assert verdict
    assert Outcome.TIMEOUT is verdict.outcome


def test_the_output_is_shown_to_its_end(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the report of the end is read first, and the output is longer than what is read at once."""
    lines = [f"line {number}" for number in range(20_000)]
    guest.machine.job_log.write_text("\n".join(lines) + "\n")
    shown: list[str] = []
    monkeypatch.setattr(following.log, "guest", shown.append)
    assert followed(guest, STARTED, ENDED).is_finished
    assert lines == shown
