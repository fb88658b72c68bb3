"""The problems of a machine, as `status` and monitoring show them. Pure: from its state and its events.

A problem has a stable code (PROBLEMS), and the time since which the host knows of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Any

import attrs

from kimbox import utctime
from kimbox.guest.events import Event
from kimbox.guest.health import Clock, Health, Work
from kimbox.machine.record import PutBack
from kimbox.machine.state import State, last_manifest_event

#: Used part of a file system, in percent, from which it is a problem: as a warning, and as a critical one.
SPACE_WARNING, SPACE_CRITICAL = 90, 97

#: The same for the root snapshot, which is lost when it is full.
SNAPSHOT_WARNING, SNAPSHOT_CRITICAL = 85, 95

#: Maximum age of the last answer of the director, in seconds. A job, during which there may be none, takes up to 300 s.
LINK_S = 900.0

#: Time after its start in which the clock of a box need not be synchronised yet, in seconds.
CLOCK_S = 900.0

#: Maximum age of the last report of a sealed box, in seconds: it sends one every 15 minutes.
REPORT_S = 3 * 15 * 60.0


class Severity(IntEnum):
    """The severity of a problem. The value is the exit status of a plugin of a monitoring system."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


#: Code of a problem -> its severity, and what it means. docs/monitoring.md has the same table.
PROBLEMS: dict[str, tuple[Severity, str]] = {
    "clock-not-synchronised": (Severity.WARNING, "The spec names time servers, and the clock is not synchronised."),
    "crashed": (Severity.CRITICAL, "The box ended without a shutdown."),
    "disk-changed": (
        Severity.CRITICAL,
        "Root in the box had changed its disk, except /persistent, before the last start.",
    ),
    "failed": (Severity.CRITICAL, "The box did not boot, provision or seal itself."),
    "fallback": (Severity.WARNING, "The newest manifest failed, and the box runs the last good one."),
    "forwards-down": (Severity.WARNING, "No process forwards the ports on which the box listens (`guest: auto`)."),
    "hung": (Severity.WARNING, "The box hung after the last start, and its watchdog has reset it."),
    "link-lost": (Severity.CRITICAL, "The director has not answered the box for 15 minutes."),
    "mount-lost": (Severity.WARNING, "A folder of the host is not served: programs of the box that use it wait."),
    "network-down": (Severity.WARNING, "No process connects the box to a network of its spec."),
    "no-report": (Severity.WARNING, "A sealed box has sent no report for 45 minutes."),
    "no-watchdog": (Severity.WARNING, "The spec asks for a watchdog, and the kernel of the box has no driver for it."),
    "not-running": (Severity.CRITICAL, "The box is halted, suspended or paused."),
    "not-sealed": (Severity.CRITICAL, "The box has a role, and is open."),
    "output-full": (
        Severity.WARNING,
        "A sealed box has sent 64 MiB to a file of its host, which keeps no more of it until the next start.",
    ),
    "panicked": (
        Severity.WARNING,
        "The kernel of the box panicked after the last start, and the box restarted itself.",
    ),
    "snapshot-full": (Severity.CRITICAL, "The root snapshot is 95 % full."),
    "snapshot-low": (Severity.WARNING, "The root snapshot is 85 % full."),
    "snapshot-lost": (Severity.WARNING, "The boot before ended because the root snapshot was full."),
    "space-full": (Severity.CRITICAL, "A file system is 97 % full."),
    "space-low": (Severity.WARNING, "A file system is 90 % full."),
    "stale-steps": (Severity.WARNING, "Steps ran under other commits than the box has now."),
    "starting": (Severity.WARNING, "The box boots, or is being provisioned."),
    "unresponsive": (Severity.CRITICAL, "The process that runs the box does not answer."),
}


@attrs.frozen
class MachineProblem:
    """A problem. `since`: seconds since the epoch; None if the host does not know. `detail`: text for a person."""

    code: str
    since_s: float | None
    detail: str

    @property
    def severity(self) -> Severity:
        return PROBLEMS[self.code][0]

    def as_json(self) -> dict[str, Any]:
        """The problem for `--json`, with `since` in UTC."""
        since = None if self.since_s is None else utctime.text(self.since_s)
        return {"code": self.code, "since": since, "severity": self.severity.name.lower(), "detail": self.detail}


@attrs.frozen
class Known:
    """What the host knows of a machine at the time `now_s`, in seconds since the epoch."""

    state: State
    is_sealed: bool
    #: Events of the last boot.
    clock: Clock
    now_s: float
    #: Time at which kimbox ended the last run, for a machine that does not run; None if it is not known.
    ended_s: float | None = None
    failure: str | None = None
    stale_steps: Sequence[str] = ()
    #: The last time at which the host put the disk of a sealed box back; None: never, or the box is not sealed.
    put_back: PutBack | None = None
    #: Names of the files with output of a sealed guest that have their maximum size.
    full_outputs: Sequence[str] = ()
    #: The message of the kernel's panic after which the box restarted itself; None: there was none.
    panic: str | None = None
    #: Code and detail for each folder and network that is lost.
    lost: Sequence[tuple[str, str]] = ()


def problems(known: Known) -> list[MachineProblem]:
    """The problems of a machine that exists, the most severe first."""
    found = [*_of_state(known), *_of_manifest(known)]
    if known.state.running and known.panic is not None:
        since_s = known.clock.at(known.clock.events[0]) if known.clock.events else None
        found.append(MachineProblem("panicked", since_s, f"its kernel panicked, and it restarted: {known.panic}"))
    if known.state.running:
        found += [*_of_snapshot(known), *_of_health(known), *_of_link(known)]
        found += [MachineProblem(code, None, detail) for code, detail in known.lost]
        if known.is_sealed and known.full_outputs:
            detail = f"the host keeps no more output of the box: {', '.join(known.full_outputs)}"
            found.append(MachineProblem("output-full", None, detail))
    return sorted(found, key=lambda problem: (-problem.severity, problem.code))


def _of_state(known: Known) -> Iterator[MachineProblem]:
    state, clock = known.state, known.clock
    if state is State.CRASHED:
        yield MachineProblem(
            "crashed", clock.last_s if clock.events else None, known.failure or "it ended without a shutdown"
        )
    elif state is State.UNRESPONSIVE:
        yield MachineProblem("unresponsive", known.clock.last_s, "the process that runs it does not answer")
    elif state in (State.HALTED, State.SUSPENDED, State.PAUSED):
        yield MachineProblem("not-running", known.ended_s, f"it is {state}")
    elif state is State.FAILED:
        event = _last(clock.events, "failed")
        yield MachineProblem("failed", clock.at(event) if event else None, known.failure or "unknown reason")
    elif state in (State.BOOTING, State.PROVISIONING):
        yield MachineProblem("starting", clock.at(clock.events[0]) if clock.events else None, f"it is {state}")
    elif state is State.READY and known.is_sealed:
        event = _last(clock.events, "ready")
        yield MachineProblem("not-sealed", clock.at(event) if event else None, "it has a role, and is open")
    if known.put_back and known.put_back.changed:
        detail = f"root in the box had changed its disk: {', '.join(known.put_back.changed)}"
        yield MachineProblem("disk-changed", _seconds(known.put_back.at), detail)


def _of_manifest(known: Known) -> Iterator[MachineProblem]:
    event = last_manifest_event(known.clock.events)
    if event and event.text("wanted"):
        detail = f"the manifest {event.text('wanted')[:12]} failed"
        yield MachineProblem("fallback", known.clock.at(event), detail)
    if known.stale_steps:
        box = _last(known.clock.events, "box")
        since_s = known.clock.at(box) if box else None
        yield MachineProblem("stale-steps", since_s, f"under other commits: {', '.join(known.stale_steps)}")
    for event in known.clock.events:
        if event.name == "watchdog" and event.text("status") == "reset":
            yield MachineProblem("hung", known.clock.at(event), "it hung, and its watchdog has reset it")
        elif event.name == "watchdog":
            yield MachineProblem("no-watchdog", known.clock.at(event), f"no watchdog: {event.text('reason')}")
    if died := _last(known.clock.events, "died"):
        yield MachineProblem("snapshot-lost", known.clock.at(died), "the boot before ended: its snapshot was full")


def _of_snapshot(known: Known) -> Iterator[MachineProblem]:
    """The fill level of the root snapshot, from the newest of the two events that have it."""
    levels = [e for e in known.clock.events if e.name in ("snapshot", "health") and e.number("percent") is not None]
    percent = (levels[-1].number("percent") or 0) if levels else 0
    for code, limit in (("snapshot-full", SNAPSHOT_CRITICAL), ("snapshot-low", SNAPSHOT_WARNING)):
        if percent >= limit:
            since_s = _since(levels, functools.partial(_is_snapshot_at, limit), known.clock)
            yield MachineProblem(code, since_s, f"the root snapshot is {percent} % full")
            return


def _of_health(known: Known) -> Iterator[MachineProblem]:
    """Problems that a sealed box reports, and that it reports nothing."""
    reports = [event for event in known.clock.events if event.name == "health"]
    sealed = _last(known.clock.events, "sealed")
    newest = reports[-1] if reports else sealed
    if known.state is State.SEALED and newest and known.now_s - known.clock.at(newest) > REPORT_S:
        minutes = int((known.now_s - known.clock.at(newest)) // 60)
        yield MachineProblem("no-report", known.clock.at(newest), f"no report for {minutes} min")
    if not reports:
        return
    health = Health.of(reports[-1])
    for space in health.spaces:
        for code, limit in (("space-full", SPACE_CRITICAL), ("space-low", SPACE_WARNING)):
            if space.used_percent >= limit:
                since_s = _since(reports, functools.partial(_is_space_at, space.mount, limit), known.clock)
                yield MachineProblem(code, since_s, f"{space.mount} is {space.used_percent} % full")
                break
    if _is_clock_wrong(reports[-1]):
        since_s = _since(reports, _is_clock_wrong, known.clock)
        yield MachineProblem("clock-not-synchronised", since_s, "the clock is not synchronised")


def _of_link(known: Known) -> Iterator[MachineProblem]:
    event = _last(known.clock.events, "jobs")
    age_s = Work.of(event).link_age_s if event else None
    if event is None or age_s is None:
        return
    answered_s = max(0.0, known.clock.at(event) - age_s)  # the age is a word of the guest
    if known.now_s - answered_s > LINK_S:
        minutes = int((known.now_s - answered_s) // 60)
        yield MachineProblem("link-lost", answered_s, f"no answer of the director for {minutes} min")


def _is_snapshot_at(limit: int, event: Event) -> bool:
    return (event.number("percent") or 0) >= limit


def _is_space_at(mount: str, limit: int, event: Event) -> bool:
    return any(space.mount == mount and space.used_percent >= limit for space in Health.of(event).spaces)


def _is_clock_wrong(event: Event) -> bool:
    return Health.of(event).clock_synchronised is False and event.uptime_s >= CLOCK_S


def _since(events: Sequence[Event], holds: Callable[[Event], bool], clock: Clock) -> float:
    """The time of the first event of the unbroken row at the end for which a problem holds."""
    first = events[-1]
    for event in reversed(events):
        if not holds(event):
            break
        first = event
    return clock.at(first)


def _seconds(at: str) -> float | None:
    """Seconds since the epoch of a time of a machine's record; None if it is not a time."""
    try:
        return utctime.seconds(at)
    except ValueError:
        return None


def _last(events: Sequence[Event], name: str) -> Event | None:
    return next((event for event in reversed(events) if event.name == name), None)
