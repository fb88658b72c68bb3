"""kimbox expire: ends the lifetimes that are over, announces those that end soon, and sends the notifications.

At the end of a lifetime a machine is shut down, then saved, and the save is read back. If one of these fails, the
machine keeps its disk, and the next run attempts it again. Nothing is removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs

from kimbox import paths, utctime
from kimbox.actions import resume, service, stop, timer
from kimbox.actions.notices import notify
from kimbox.actions.observe import state
from kimbox.actions.saves import candidates
from kimbox.actions.saves import save as saving
from kimbox.errors import KimboxError
from kimbox.files import locked
from kimbox.log import log
from kimbox.machine import life as lives
from kimbox.machine.folder import Machine
from kimbox.machine.life import Life, Lifetime, read_life
from kimbox.machine.record import Ended
from kimbox.machine.state import State
from kimbox.spec.occasions import Occasion
from kimbox.transfer.notices import spool
from kimbox.transfer.notices.spool import Delivery


@attrs.frozen
class End:
    """What was done at the end of a lifetime. `url`: where the box was saved; None: nowhere."""

    name: str
    url: str | None = None
    number: int | None = None
    #: Why the box was not shut down, or not saved. None: everything was done.
    failure: str | None = None


@attrs.frozen
class Expired:
    """What a run has done: names of machines, and notifications."""

    ended: list[End]
    announced: list[str]
    crashed: list[str]
    deliveries: list[Delivery]


def expire(clock: Callable[[], float] = time.time) -> Expired:
    """Does everything that is due. `clock` gives the time, in seconds since the epoch.

    Raises StateError (`busy`) if another process does it.
    """
    with locked(paths.home() / lives.LOCK_NAME, busy="another kimbox process ends lifetimes"):
        done = Expired([], [], [], [])
        for machine, _ in list(lives.lives()):
            try:
                _look_at(machine, read_life(machine), clock, done)  # the end of another machine may have taken hours
            except (KimboxError, OSError) as error:  # one machine must not keep the others from their end
                log.warn(f"{machine.name}: {error}")
        done.deliveries.extend(spool.deliver(clock()))
        if not any(not life.is_empty for _, life in lives.lives()):
            timer.remove()
            if any(not life.is_empty for _, life in lives.lives()):  # one has begun, and has seen the timer
                timer.install()
        return done


def _look_at(machine: Machine, life: Life, clock: Callable[[], float], done: Expired) -> None:
    lifetime, now_s = life.lifetime, clock()
    if life.reports_crashes and not life.is_crash_reported and state(machine) is State.CRASHED:
        _change(machine, lambda now: attrs.evolve(now, is_crash_reported=True))
        notify(machine, Occasion.CRASHED, f"{machine.name} has crashed: it does not run, and was not halted")
        done.crashed.append(machine.name)
    if lifetime is None or machine.is_locked_by_another():  # it is at work: the next run looks again
        return
    if lifetime.is_to_announce(now_s):
        _change(machine, _with(lambda now: attrs.evolve(now, is_announced=True)))
        minutes = round(lifetime.remaining_s(now_s) / 60)
        text = f"the lifetime of {machine.name} ends in {minutes} minutes: it will be shut down and saved"
        notify(machine, Occasion.EXPIRING, text, ends_at=lifetime.ends_at, hint=f"kimbox extend {machine.name}")
        done.announced.append(machine.name)
    if lifetime.is_due(now_s):
        done.ended.append(_end(machine, life, lifetime, clock))


def _end(machine: Machine, life: Life, lifetime: Lifetime, clock: Callable[[], float]) -> End:
    """Shuts a machine down and saves it. Writes the result to its life, and notifies."""
    name = machine.name

    def change(**values: Any) -> None:
        """Changes the lifetime that has ended, and not one that a start or `kimbox extend` has begun meanwhile."""
        _change(machine, _with(lambda now: attrs.evolve(now, **values) if now.ends_at == lifetime.ends_at else now))

    try:
        end = _shut_down_and_save(machine, life)
    except (KimboxError, OSError) as error:
        end = End(name, failure=str(error))
    now = read_life(machine).lifetime
    if now is None or now.ends_at != lifetime.ends_at:
        return end  # a start, or `kimbox extend`, has begun another one meanwhile
    at = utctime.text(clock())
    if end.failure is None:
        change(ended_at=at, is_reported=True, failure=None)
    else:
        change(tried_at=at, attempts=lifetime.attempts + 1, is_reported=True, failure=end.failure)
    if not lifetime.is_reported or (end.failure is None and lifetime.attempts):
        present = state(machine)
        saved = f"saved as number {end.number} in {end.url}" if end.url else "there was nothing to save"
        result = saved if end.failure is None else f"its disk stays, but it is not saved: {end.failure}"
        text = f"the lifetime of {name} has ended. It is {present}; {result}"
        details = {"state": str(present), "url": end.url, "number": end.number, "failure": end.failure}
        notify(machine, Occasion.EXPIRED, text, **details)
    return end


def _shut_down_and_save(machine: Machine, life: Life) -> End:
    """Shuts a machine down, in each state, and saves it, unless it has never run.

    Raises KimboxError if that fails. The memory of a suspended machine is not thrown away: it resumes first.
    """
    if state(machine) in (State.SUSPENDED, State.PAUSED):
        resume.resume(machine)
    stop.halt(machine)
    service.rest(machine)
    record = machine.record()
    if record.ended is Ended.NEW:
        return End(machine.name)
    request = saving.SaveRequest(machine, life.store or str(candidates.default_store(machine)))
    saved = saving.save(request)
    return End(machine.name, saved.url, saved.manifest.number)


def _with(change: Callable[[Lifetime], Lifetime]) -> Callable[[Life], Life]:
    """Returns a change of a life that changes its lifetime, if it still has one."""
    return lambda life: attrs.evolve(life, lifetime=change(life.lifetime)) if life.lifetime else life


def _change(machine: Machine, change: Callable[[Life], Life]) -> None:
    """Changes the life of a machine under its lock, from what is in the file then."""
    with machine.locked():
        change(read_life(machine)).write(machine.folder)
