"""Signs of life of a guest, and when their absence is its end."""

from __future__ import annotations

from typing import Any

from kimbox.guest.events import Event
from kimbox.jobs.heartbeat import Heartbeat


def event(status: str, **fields: Any) -> Event:
    return Event("job", "boot", 1.0, {"status": status, **fields})


def test_a_guest_that_falls_silent() -> None:
    beat = Heartbeat(10, 95)
    beat.hear(event("started", beat="5"), 100)
    beat.hear(event("alive"), 105)
    assert not beat.is_silent(115)
    assert beat.is_silent(115.1)
    beat.hear(event("alive"), 116)
    assert not beat.is_silent(120)


def test_a_guest_that_does_not_tell() -> None:
    """The image of an older kimbox sends no signs of life, and its silence means nothing."""
    beat = Heartbeat(10, 995)
    beat.hear(event("started"), 1000)
    assert not beat.is_silent(2000)


def test_a_guest_that_does_not_start_the_job() -> None:
    assert Heartbeat(10, 100).is_silent(110.1)
