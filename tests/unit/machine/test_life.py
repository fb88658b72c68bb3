"""The lifetime of a machine, by a clock that the test sets."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import makemachine
import pytest
from ownhome import home as home

from kimbox import paths, utctime
from kimbox.errors import KimboxError
from kimbox.machine import life
from kimbox.machine.life import CREATED_LIFETIME_S, FILE, RETRY_S, WARNING_S, Life, Lifetime, read_life, started
from kimbox.spec.load import load_box
from kimbox.spec.model import Box
from kimbox.spec.occasions import Notify, Occasion

#: A time, in seconds since the epoch: 2026-01-31T12:00:00Z.
NOW_S = 1769860800.0


def box(**changes: object) -> Box:
    """Returns a shipped box with other values."""
    return attrs.evolve(load_box(paths.boxes_dir() / "minimal.yaml"), **changes)


def begun(length_s: int = 36 * 3600) -> Lifetime:
    return Lifetime.begin(length_s, NOW_S, from_spec=True)


def test_a_lifetime_by_the_wall_clock() -> None:
    """It is announced once in its last hour, and due at its end, however long the host slept."""
    lifetime = begun()
    assert ("2026-02-02T00:00:00Z", 36 * 3600) == (lifetime.ends_at, lifetime.remaining_s(NOW_S))
    ends_s = utctime.seconds(lifetime.ends_at)
    for before_s, announce, due in ((WARNING_S + 1, False, False), (WARNING_S, True, False), (1, True, False)):
        at_s = ends_s - before_s
        assert (announce, due) == (lifetime.is_to_announce(at_s), lifetime.is_due(at_s)), before_s
    for after_s in (0, 1, 365 * 86400):
        assert (False, True) == (lifetime.is_to_announce(ends_s + after_s), lifetime.is_due(ends_s + after_s))
    assert not attrs.evolve(lifetime, is_announced=True).is_to_announce(ends_s - 1)


def test_a_failed_end_is_attempted_again() -> None:
    """After 15 minutes, then 30, at most after a day. A clock that was set back does not delay it for longer."""
    lifetime = begun()
    at_s = utctime.seconds(lifetime.ends_at)
    delays = []
    for attempts in (1, 2, 3, 20):
        failed = attrs.evolve(lifetime, attempts=attempts, tried_at=utctime.text(at_s), failure="no space")
        delay_s = next(s for s in range(RETRY_S, 86401, 300) if failed.is_due(at_s + s))
        assert not failed.is_due(at_s + delay_s - 1)
        delays.append(delay_s // 60)
    assert [15, 30, 60, 1440] == delays
    assert attrs.evolve(lifetime, attempts=1, tried_at=utctime.text(at_s + 86400)).is_due(at_s)
    assert not attrs.evolve(lifetime, ended_at=lifetime.ends_at).is_due(at_s + 1e7)


def test_what_begins_a_lifetime() -> None:
    """The spec, or `kimbox create`; not a start before its end; and a start after its end begins a new one."""
    assert started(Life(), box(), "x", NOW_S, is_start=True).is_empty
    created = started(Life(), box(), "x", NOW_S, is_start=True, created=True).lifetime
    assert created
    assert (CREATED_LIFETIME_S, False) == (created.length_s, created.from_spec)
    first = started(Life(), box(lifetime_s=7200, store="file:///s/{name}"), "x", NOW_S, is_start=True)
    assert first.lifetime == Lifetime.begin(7200, NOW_S, from_spec=True)
    assert "file:///s/x" == first.store
    again = started(first, box(lifetime_s=7200), "x", NOW_S + 7199, is_start=True)
    assert again.lifetime == first.lifetime
    for is_start in (True, False):
        late = started(first, box(lifetime_s=7200), "x", NOW_S + 7200, is_start=is_start).lifetime
        assert late
        assert (utctime.text(NOW_S + 14400 if is_start else NOW_S + 7200)) == late.ends_at
    assert first.lifetime
    saved = attrs.evolve(first, lifetime=attrs.evolve(first.lifetime, ended_at=utctime.text(NOW_S + 60)))
    restarted = started(saved, box(lifetime_s=7200), "x", NOW_S + 120, is_start=True).lifetime
    assert restarted == Lifetime.begin(7200, NOW_S + 120, from_spec=True)


def test_a_changed_spec() -> None:
    """Another length counts from the same beginning. Without `lifetime` the box has no end; a created one does."""
    first = started(Life(), box(lifetime_s=7200), "x", NOW_S, is_start=True)
    longer = started(first, box(lifetime_s=86400), "x", NOW_S + 600, is_start=False).lifetime
    assert longer
    assert (utctime.text(NOW_S + 86400), 86400) == (longer.ends_at, longer.length_s)
    assert started(first, box(), "x", NOW_S + 600, is_start=False).lifetime is None
    created = started(Life(), box(), "x", NOW_S, is_start=True, created=True)
    assert created.lifetime == started(created, box(), "x", NOW_S + 600, is_start=False).lifetime


def test_the_file(home: object) -> None:
    """What was written is read again. It is private, and is removed if nothing is in it."""
    machine = makemachine.make_machine()
    assert Life() == read_life(machine)
    target = Notify(mail="someone@example.org", events=(Occasion.SAVED, Occasion.EXPIRED))
    full = Life(begun(), "file:///srv/saves/tiny", (target, Notify(command="chat")), is_crash_reported=True)
    full.write(machine.folder)
    assert full == read_life(machine)
    assert [(machine, full)] == list(life.lives())
    assert 0o600 == (machine.folder / FILE).stat().st_mode & 0o777
    Life().write(machine.folder)
    assert not (machine.folder / FILE).exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": 2}, "unsupported-format"),
        ({"lifetime": {"ends_at": "soon"}}, "file-damaged"),
        ({"lifetime": attrs.asdict(attrs.evolve(begun(), ends_at="soon"))}, "file-damaged"),
        ({"notify": [{"mail": "x", "events": ["nothing"]}]}, "file-damaged"),
        ({"notify": 3}, "file-damaged"),
    ],
)
def test_a_damaged_file(home: object, change: dict[str, object], code: str) -> None:
    """It is an error with the name of the file, and hides no other machine."""
    machine, other = makemachine.make_machine(), makemachine.make_machine("other")
    for one in (machine, other):
        Life(begun()).write(one.folder)
    path = machine.folder / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KimboxError) as caught:
        read_life(machine)
    assert (code, str(path)) == (caught.value.code, caught.value.fields["path"])
    assert ["other"] == [found.name for found, _ in life.lives()]


def test_words() -> None:
    """A person reads days, hours and minutes."""
    words = [life.duration_words(s) for s in (3, 61, 3600, 36 * 3600, 86400 * 2 + 3600)]
    assert ["less than a minute", "1 min", "1 h 0 min", "36 h 0 min", "2 d 1 h"] == words


@pytest.mark.parametrize("change", [{"attempts": None}, {"length_s": "1"}, {"failure": 3}, {"ends_at": None}])
def test_a_value_of_a_wrong_type_is_damage(home: Path, change: dict[str, object]) -> None:
    """It is an error of that machine, and none when the value is used."""
    machine = makemachine.make_machine()
    Life(begun()).write(machine.folder)
    value = json.loads((machine.folder / FILE).read_text())
    value["lifetime"] |= change
    (machine.folder / FILE).write_text(json.dumps(value))
    with pytest.raises(KimboxError, match="is damaged") as caught:
        read_life(machine)
    assert "file-damaged" == caught.value.code


def test_another_end_is_reported_again() -> None:
    """Whoever was told of the first one, which failed."""
    failed = attrs.evolve(begun(), is_reported=True, attempts=2, tried_at="2026-02-02T00:00:00Z", failure="no route")
    at_s = utctime.seconds(failed.ends_at)
    for other in (
        failed.extended(3600, at_s),
        started(Life(failed), box(lifetime_s=48 * 3600), "tiny", NOW_S, is_start=False).lifetime,
    ):
        assert other
        assert (False, 0, None, None) == (other.is_reported, other.attempts, other.tried_at, other.failure)
