"""The problems of a machine: which there are, since when, and how severe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from makemachine import BOOT

from kimbox.guest.events import Event
from kimbox.guest.health import Clock, Health, Work, as_json
from kimbox.machine.problems import CLOCK_S, LINK_S, PROBLEMS, REPORT_S, Known, Severity, problems
from kimbox.machine.record import PutBack
from kimbox.machine.state import State

#: The host received the last event at this time.
LAST_S = 1_000_000.0


def event(name: str, uptime_s: float, /, **fields: str | int) -> Event:
    return Event(name, BOOT, uptime_s, dict(fields))


SEALED = event("sealed", 20, manifest="a", role="worker", site="s")
HEALTHY = event("health", 30, space="/:40:999 /persistent:5:88", clock="yes", percent=12)


def found(*events: Event, state: State = State.SEALED, later_s: float = 0, **known: Any) -> dict[str, float | None]:
    """The problems of a machine that sent these events: code -> since, in seconds before the last event."""
    all_known = {"is_sealed": True, "clock": Clock(events, LAST_S), "now_s": LAST_S + later_s} | known
    return {
        problem.code: None if problem.since_s is None else LAST_S - problem.since_s
        for problem in problems(Known(state, **all_known))
    }


def test_a_healthy_box_has_none() -> None:
    """Neither a box that is sealed and reports, nor an open one that is ready."""
    assert {} == found(SEALED, HEALTHY, event("jobs", 31, done="1", link_s="3"))
    assert {} == found(event("ready", 9, manifest="a"), state=State.READY, is_sealed=False)


@pytest.mark.parametrize(
    ("expected", "events", "known"),
    [
        ({"crashed": 0.0}, [SEALED], {"state": State.CRASHED}),
        ({"not-running": None}, [SEALED], {"state": State.HALTED}),
        ({"not-running": 7.0}, [SEALED], {"state": State.SUSPENDED, "ended_s": LAST_S - 7}),
        ({"failed": 3.0}, [event("failed", 5, kind="setup", name="setup"), event("sshd", 8)], {"state": State.FAILED}),
        ({"starting": 4.0}, [event("booting", 1), event("sshd", 5)], {"state": State.BOOTING}),
        ({"not-sealed": 0.0}, [event("ready", 5, manifest="a")], {"state": State.READY}),
        ({"disk-changed": LAST_S}, [SEALED], {"put_back": PutBack("1970-01-01T00:00:00Z", ("the boot loader",))}),
        ({"disk-changed": None}, [SEALED], {"put_back": PutBack("then", ("/boot",))}),
        ({}, [SEALED], {"put_back": PutBack("1970-01-01T00:00:00Z", ())}),
        ({"fallback": 10.0}, [event("sealed", 20, manifest="a", wanted="b"), HEALTHY], {}),
        ({"stale-steps": 2.0}, [event("box", 28), HEALTHY], {"stale_steps": ["one"]}),
        ({"unresponsive": 0.0}, [SEALED], {"state": State.UNRESPONSIVE}),
        ({"panicked": 10.0}, [SEALED, HEALTHY], {"panic": "Fatal exception"}),
        ({"not-running": None}, [SEALED], {"state": State.HALTED, "panic": "Fatal exception"}),
        ({"output-full": None}, [SEALED], {"full_outputs": ["events.jsonl"]}),
        ({}, [event("ready", 5)], {"full_outputs": ["events.jsonl"], "is_sealed": False, "state": State.READY}),
        ({"hung": 28.0}, [event("watchdog", 2, status="reset"), HEALTHY], {}),
        ({"no-watchdog": 28.0}, [event("watchdog", 2, status="missing", reason="no driver"), HEALTHY], {}),
        ({"mount-lost": None}, [SEALED, HEALTHY], {"lost": [("mount-lost", "/srv is not served")]}),
        ({"not-running": None}, [SEALED], {"state": State.HALTED, "lost": [("network-down", "lan")]}),
        ({"snapshot-lost": 29.0}, [event("died", 1, reason="full"), HEALTHY], {}),
    ],
)
def test_of_state_and_manifest(expected: dict[str, float], events: list[Event], known: dict[str, Any]) -> None:
    """Each has the time of its event. A machine that does not run has no other problems."""
    assert expected == found(*events, **known)


def test_space_and_clock_count_from_the_first_report_in_a_row() -> None:
    """A problem that ended and came back is as old as its return."""
    reports = [
        event("health", at, space=f"/:{percent}:5 /persistent:1:9", clock=clock)
        for at, percent, clock in ((910, 95, "no"), (920, 50, "yes"), (930, 91, "no"), (940, 98, "no"))
    ]
    assert {"space-full": 0.0, "clock-not-synchronised": 10.0} == found(SEALED, *reports)
    assert {"space-low": 0.0, "clock-not-synchronised": 0.0} == found(SEALED, *reports[:3])
    assert {} == found(SEALED, *reports[:2])
    assert {} == found(SEALED, event("health", CLOCK_S - 1, space="", clock="no"))  # it has just started


def test_the_snapshot_counts_by_its_newest_level() -> None:
    """Either event can have it."""
    assert {"snapshot-full": 0.0} == found(SEALED, HEALTHY, event("snapshot", 40, percent=95))
    assert {} == found(SEALED, event("snapshot", 25, percent=95), HEALTHY)


def test_a_silent_box_is_a_problem() -> None:
    """A sealed box that sends no report, or never sent one, is noticed after 45 minutes."""
    assert {} == found(SEALED, HEALTHY, later_s=REPORT_S - 1)
    assert {"no-report": 0.0} == found(SEALED, HEALTHY, later_s=REPORT_S + 1)
    assert {"no-report": 0.0} == found(SEALED, later_s=REPORT_S + 1)


def test_the_link_counts_from_the_last_answer() -> None:
    """The age in the event and the time since the event are added, also if the runner itself no longer reports."""
    for age_s, later_s in ((0.0, LINK_S + 1), (LINK_S + 1, 0.0), (LINK_S / 2 + 1, LINK_S / 2)):
        jobs = event("jobs", 40, done="1", link_s=str(int(age_s)))
        assert {"link-lost": int(age_s)} == found(SEALED, HEALTHY, jobs, later_s=later_s)
    assert {} == found(SEALED, HEALTHY, event("jobs", 40, done="1"), later_s=LINK_S + 1)  # of a director


def test_hostile_reports() -> None:
    """Words of another form are left out, and no number gives a time that does not exist."""
    space = "/:40 /a:999:1 /b:x:1 ../c:1:1 /d:50:7 /e|x:1:1"
    health = Health.of(event("health", 1, space=space, clock="maybe", percent=500))
    assert [("/a", 100), ("/d", 50)] == [(one.mount, one.used_percent) for one in health.spaces]
    assert (None, None) == (health.snapshot_percent, health.clock_synchronised)
    work = Work.of(event("jobs", 1, done="1", link_s="9" * 12, last_s="-4", x="9" * 13))
    assert ({"done": 1}, int("9" * 12), None) == (work.counts, work.link_age_s, work.last_job_age_s)
    events = (event("jobs", 0, link_s="9" * 12), event("health", 9e15, space="", clock="no"))
    known = Known(State.SEALED, True, Clock(events, LAST_S), LAST_S)
    assert {"link-lost", "clock-not-synchronised"} == {problem.as_json()["code"] for problem in problems(known)}


def test_the_report_of_a_box() -> None:
    """`status --json` has the last values, with ages now; null for what the box does not report."""
    clock = Clock((HEALTHY, event("jobs", 40, done="1", link_s="5", last_s="7")), LAST_S)
    assert None is as_json([SEALED], clock, LAST_S)
    value = as_json(clock.events, clock, LAST_S + 2)
    assert value is not None
    assert (12, 7, 9, True) == (
        value["age_s"], value["link_age_s"], value["last_job_age_s"], value["clock_synchronised"],
    )  # fmt: skip
    assert {"mount": "/", "used_percent": 40, "free_bytes": 999} == value["spaces"][0]
    only_jobs = as_json(clock.events[1:], clock, LAST_S)
    assert only_jobs is not None
    assert (None, None) == (only_jobs["age_s"], only_jobs["spaces"])


def test_the_page_for_sites_has_every_code() -> None:
    """docs/monitoring.md lists each code with its severity and its meaning."""
    page = (Path(__file__).resolve().parents[3] / "docs/monitoring.md").read_text()
    for code, (severity, meaning) in PROBLEMS.items():
        assert f"| `{code}` | {severity.name.lower()} | {meaning} |" in page
    assert (0, 1, 2, 3) == tuple(Severity)
