"""The health of a sealed box, as it reports it to the host: free space, root snapshot, clock, link and jobs. Pure.

It comes from the events `health` and `jobs` (schemas/events.schema.json), which are untrusted input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs

from kimbox.guest.events import Event

#: A word of the field `space`: mount point, used part in percent, free bytes.
_SPACE = re.compile(r"(?P<mount>/[A-Za-z0-9._/-]{0,200}):(?P<percent>[0-9]{1,3}):(?P<free>[0-9]{1,18})")

#: A count or an age in an event of a runner.
_COUNT = re.compile(r"[0-9]{1,12}")

#: Fields of the event `jobs` that are ages in seconds, and not counts.
_LINK_AGE, _LAST_JOB_AGE = "link_s", "last_s"


@attrs.frozen
class Space:
    """A file system: its mount point, its used part in percent, and its free bytes."""

    mount: str
    used_percent: int
    free_bytes: int


@attrs.frozen
class Health:
    """The content of an event `health`."""

    spaces: tuple[Space, ...]
    #: Used part of the root snapshot, in percent; None if the root is no snapshot.
    snapshot_percent: int | None
    #: Whether a time client has synchronised the clock; None if the box cannot tell.
    clock_synchronised: bool | None

    @classmethod
    def of(cls, event: Event) -> Health:
        """Parses an event. Words and values of another form are left out."""
        found = (_SPACE.fullmatch(word) for word in event.text("space").split())
        spaces = tuple(Space(m["mount"], min(int(m["percent"]), 100), int(m["free"])) for m in found if m)
        percent = event.number("percent")
        snapshot_percent = percent if percent is not None and 0 <= percent <= 100 else None
        return cls(spaces, snapshot_percent, {"yes": True, "no": False}.get(event.text("clock")))


@attrs.frozen
class Work:
    """The content of an event `jobs`: counts, and ages in seconds at the time of the event; None if not reported."""

    counts: dict[str, int]
    link_age_s: int | None
    last_job_age_s: int | None

    @classmethod
    def of(cls, event: Event) -> Work:
        """Parses an event. Values of another form are left out."""
        texts = {name: str(value) for name, value in event.fields.items()}
        numbers = {name: int(text) for name, text in texts.items() if _COUNT.fullmatch(text)}
        link, last = numbers.pop(_LINK_AGE, None), numbers.pop(_LAST_JOB_AGE, None)
        return cls(numbers, link, last)


@attrs.frozen
class Clock:
    """Converts the times of a boot's events to times of this host, in seconds since the epoch.

    A guest does not know the host's clock, so the host uses the time at which it received the last event.
    """

    events: tuple[Event, ...]
    #: Time at which the last event arrived.
    last_s: float

    def at(self, event: Event) -> float:
        """The time at which an event was sent; within the time from 0 to `last_s`, whatever the guest reports."""
        return max(0.0, self.last_s - max(0.0, self.events[-1].uptime_s - event.uptime_s))


def as_json(events: Sequence[Event], clock: Clock, now_s: float) -> dict[str, Any] | None:
    """The last report of a box for `status --json`, with ages in seconds at `now_s`. None if it has sent none."""
    health = next((event for event in reversed(events) if event.name == "health"), None)
    work = next((event for event in reversed(events) if event.name == "jobs"), None)
    if health is None and work is None:
        return None
    value: dict[str, Any] = {"age_s": None, "spaces": None, "snapshot_percent": None, "clock_synchronised": None}
    value |= {"link_age_s": None, "last_job_age_s": None}
    if health:
        value |= attrs.asdict(Health.of(health)) | {"age_s": _age_s(health, clock, now_s)}
    if work:
        parsed, age_s = Work.of(work), _age_s(work, clock, now_s)
        for name, at_event in (("link_age_s", parsed.link_age_s), ("last_job_age_s", parsed.last_job_age_s)):
            value[name] = None if at_event is None else at_event + age_s
    return value


def _age_s(event: Event, clock: Clock, now_s: float) -> int:
    return max(0, int(now_s - clock.at(event)))
