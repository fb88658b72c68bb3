"""The life of a machine: when it ends, where it is saved then, and who is notified.

machines/NAME/life.json has it. It is a copy of what the spec says at the last start, so that the end of a lifetime
needs no spec. It is a file of its own, because a snapshot of the box must not bring back an old end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox import utctime
from kimbox.errors import KimboxError
from kimbox.files import read_json, write_json
from kimbox.machine.folder import Machine
from kimbox.machine.folder import machines as all_machines
from kimbox.spec.model import Box
from kimbox.spec.occasions import Notify, Occasion

#: Version of life.json.
FORMAT = 1

#: Name of the file in the folder of a machine.
FILE = "life.json"

#: Name of the file in the home of kimbox whose lock a process holds that ends lifetimes.
LOCK_NAME = "expire.lock"

#: Lifetime of a box that `kimbox create` makes and whose spec has none, in seconds.
CREATED_LIFETIME_S = 36 * 3600

#: The longest remaining lifetime, in seconds, unless the spec of the box has a longer lifetime.
MAX_REMAINING_S = 7 * 86400

#: How long before its end a box is announced to end, in seconds.
WARNING_S = 3600

#: Time until a failed end is attempted again, in seconds: it doubles with each attempt, up to the maximum.
RETRY_S, MAX_RETRY_S = 900, 86400


@attrs.frozen
class Lifetime:
    """The lifetime of a machine. Times are in UTC, as in utctime."""

    ends_at: str
    length_s: int
    #: False: `kimbox create` or `kimbox extend` gave it, and the spec says nothing.
    from_spec: bool
    #: Whether the end was announced.
    is_announced: bool = False
    #: Whether the end was reported to those who are notified.
    is_reported: bool = False
    #: The time at which everything was done: the box is shut down and saved. None: it is not.
    ended_at: str | None = None
    #: Number of attempts to end it that failed, the time of the last one, and why it failed.
    attempts: int = 0
    tried_at: str | None = None
    failure: str | None = None

    @classmethod
    def begin(cls, length_s: int, now_s: float, *, from_spec: bool) -> Self:
        """Returns a lifetime that begins now."""
        return cls(utctime.text(now_s + length_s), length_s, from_spec, is_announced=length_s <= WARNING_S)

    def remaining_s(self, now_s: float) -> float:
        """Returns the seconds until the end: 0 if it has come."""
        return 0.0 if self.ended_at else max(0.0, utctime.seconds(self.ends_at) - now_s)

    def is_over(self, now_s: float) -> bool:
        """Whether the end has come. The box may still run."""
        return self.remaining_s(now_s) == 0

    def is_due(self, now_s: float) -> bool:
        """Whether the box has to be ended now: not if that was done, or failed a short time ago."""
        if self.ended_at or not self.is_over(now_s):
            return False
        delay_s = min(RETRY_S << min(max(0, self.attempts - 1), 10), MAX_RETRY_S)
        return self.tried_at is None or not 0 <= now_s - utctime.seconds(self.tried_at) < delay_s

    def is_to_announce(self, now_s: float) -> bool:
        """Whether the end has to be announced now."""
        return not self.is_announced and not self.is_over(now_s) and self.remaining_s(now_s) <= WARNING_S

    def extended(self, length_s: float, now_s: float) -> Self:
        """Returns the lifetime with another end: in `length_s` seconds."""
        ends_at = utctime.text(now_s + length_s)
        return attrs.evolve(self, ends_at=ends_at, is_announced=length_s <= WARNING_S, **_NOT_TRIED)

    def as_json(self, now_s: float) -> dict[str, Any]:
        """Returns what `status` and `list` report."""
        return {
            "ends_at": self.ends_at,
            "remaining_s": round(self.remaining_s(now_s)),
            "ended_at": self.ended_at,
            "failure": self.failure,
        }


#: Values of a lifetime whose end was neither attempted nor reported.
_NOT_TRIED: dict[str, Any] = {"is_reported": False, "attempts": 0, "tried_at": None, "failure": None}


@attrs.frozen
class Life:
    """The content of life.json."""

    lifetime: Lifetime | None = None
    #: The store of the spec, with the name of the machine in it. None: the spec has none.
    store: str | None = None
    notify: tuple[Notify, ...] = ()
    #: Whether those who are notified know that the last run crashed.
    is_crash_reported: bool = False

    @property
    def is_empty(self) -> bool:
        return self.lifetime is None and not self.notify

    @property
    def reports_crashes(self) -> bool:
        """Whether somebody is notified of a crash."""
        return any(Occasion.CRASHED in one.events for one in self.notify)

    def write(self, folder: Path) -> None:
        """Writes life.json to the folder of a machine, or removes it if nothing is in it."""
        if self.is_empty:
            (folder / FILE).unlink(missing_ok=True)
            return
        write_json(folder / FILE, {"format": FORMAT} | attrs.asdict(self), mode=0o600)

    @classmethod
    def parse(cls, value: dict[str, Any], path: Path) -> Self:
        """Parses the content of life.json. Raises KimboxError: `file-damaged`, `unsupported-format`."""
        try:
            if value["format"] != FORMAT:
                raise KimboxError(
                    f"{path} has format {value['format']!r:.40}; this version reads {FORMAT}",
                    code="unsupported-format",
                    hint="use the version of kimbox that wrote it",
                    fields={"path": str(path)},
                )
            lifetime = value["lifetime"]
            notify = [Notify(**one | {"events": tuple(map(Occasion, one["events"]))}) for one in value["notify"]]
            return cls(
                None if lifetime is None else _lifetime(lifetime),
                value["store"],
                tuple(notify),
                value["is_crash_reported"] is True,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KimboxError(
                f"{path} is damaged: {error}",
                code="file-damaged",
                hint=f"remove the file; the next `kimbox up {path.parent.name}` writes it again",
                fields={"path": str(path)},
            ) from None


def _lifetime(value: dict[str, Any]) -> Lifetime:
    """Parses a lifetime. Raises ValueError, or an error of a value with a wrong type."""
    lifetime = Lifetime(**value)
    utctime.seconds(lifetime.ends_at)
    for at in (lifetime.tried_at, lifetime.ended_at):
        if at is not None:
            utctime.seconds(at)
    if not (isinstance(lifetime.length_s, int) and isinstance(lifetime.attempts, int)):
        raise ValueError("a number of a lifetime is no integer")
    if not isinstance(lifetime.failure, str | None):
        raise ValueError("the failure of a lifetime is no text")
    return lifetime


def duration_words(seconds: float) -> str:
    """Returns a remaining time as text: 1 d 11 h, 35 h 10 min, 40 min, less than a minute."""
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60
    if hours >= 48:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else "less than a minute"


def read_life(machine: Machine) -> Life:
    """Returns the life of a machine; an empty one if it has no life.json. Raises the errors of `Life.parse`."""
    path = machine.folder / FILE
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return Life()
    return Life.parse(value, path)


def lives() -> Iterator[tuple[Machine, Life]]:
    """Yields each machine that has a life.json which can be read. The others do not hide it."""
    for machine in all_machines():
        if (machine.folder / FILE).exists():
            with contextlib.suppress(KimboxError, OSError):
                yield machine, read_life(machine)


def started(life: Life, box: Box, name: str, now_s: float, *, is_start: bool, created: bool = False) -> Life:
    """Returns the life of a machine that `kimbox up` starts, or finds running.

    A start after the end begins a new lifetime. A lifetime in the spec that was changed counts from the same beginning.
    `created`: the box is made by `kimbox create`, and has a lifetime in each case.
    """
    lifetime, spec_s = life.lifetime, box.lifetime_s
    if spec_s is None and lifetime and lifetime.from_spec:
        lifetime = None
    if lifetime and is_start and lifetime.is_over(now_s):
        lifetime = Lifetime.begin(spec_s or lifetime.length_s, now_s, from_spec=spec_s is not None)
    elif lifetime is None and (spec_s or created):
        lifetime = Lifetime.begin(spec_s or CREATED_LIFETIME_S, now_s, from_spec=spec_s is not None)
    elif lifetime and spec_s and lifetime.length_s != spec_s:
        begun_s = utctime.seconds(lifetime.ends_at) - lifetime.length_s
        ends_at = utctime.text(begun_s + spec_s)
        lifetime = attrs.evolve(
            lifetime, ends_at=ends_at, length_s=spec_s, from_spec=True, is_announced=False, **_NOT_TRIED
        )
    store = box.store.replace("{name}", name) if box.store else None
    return Life(lifetime, store, box.notify, life.is_crash_reported and not is_start)
