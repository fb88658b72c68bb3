"""The lifetime of a machine: how it begins and how its end is moved. `kimbox.actions.expire` ends it."""

from __future__ import annotations

import time

import attrs

from kimbox import utctime
from kimbox.actions import timer
from kimbox.errors import StateError, UsageError
from kimbox.machine.folder import Machine
from kimbox.machine.life import FILE, MAX_REMAINING_S, Life, Lifetime, read_life, started
from kimbox.machine.record import Purpose
from kimbox.spec.model import Box

#: The purposes of machines with a lifetime. The machine of a job ends with the job.
PURPOSES = (Purpose.BOX, Purpose.CLONE)


def begin(machine: Machine, box: Box, *, is_start: bool) -> None:
    """Writes the life of a machine that starts, or that `kimbox up` finds running. The caller holds its lock."""
    if machine.record().purpose not in PURPOSES:
        return
    before = read_life(machine)
    life = started(before, box, machine.name, time.time(), is_start=is_start)
    if life != before or life.is_empty:
        life.write(machine.folder)
    if not life.is_empty:
        timer.install()


def created(box: Box, name: str) -> Life:
    """Returns the life of a machine that `kimbox create` makes."""
    timer.install()
    return started(Life(), box, name, time.time(), is_start=True, created=True)


def close(machine: Machine) -> None:
    """Marks the lifetime of a machine as ended, because it is shut down and saved. The next start begins a new one."""
    if not (machine.folder / FILE).exists():
        return
    with machine.locked():
        life = read_life(machine)
        if life.lifetime and not life.lifetime.ended_at:
            ended = attrs.evolve(life.lifetime, ended_at=utctime.text(), failure=None)
            attrs.evolve(life, lifetime=ended).write(machine.folder)


def extend(machine: Machine, length_s: int | None) -> Lifetime:
    """Moves the end of a lifetime to `length_s` seconds from now. None: to the length of the lifetime from now.

    A machine without a lifetime gets one, if `length_s` is given. Raises StateError: `box-not-found`, `wrong-state` if
    the lifetime has ended or there is none; UsageError (`out-of-range`) if it would be too long.
    """
    with machine.locked():
        machine.record()
        now_s = time.time()
        life = read_life(machine)
        lifetime = life.lifetime
        if lifetime and lifetime.ended_at:
            raise StateError(
                f"the lifetime of {machine.name} has ended, and the box is saved",
                code="wrong-state",
                hint=f"`kimbox start {machine.name}` starts it again, with a new lifetime",
                fields={"verb": "extend", "name": machine.name},
            )
        if lifetime is None and length_s is None:
            raise StateError(
                f"{machine.name} has no lifetime: nothing ends it",
                code="wrong-state",
                hint=f"`kimbox extend {machine.name} --to 36h` gives it one",
                fields={"verb": "extend", "name": machine.name},
            )
        limit_s = max(MAX_REMAINING_S, lifetime.length_s if lifetime and lifetime.from_spec else 0)
        length_s = length_s or (lifetime.length_s if lifetime else 0)
        if length_s > limit_s:
            raise UsageError(
                f"{machine.name} cannot get more than {limit_s // 3600} hours from now",
                code="out-of-range",
                hint="a longer `lifetime` in its spec allows more",
                fields={"name": machine.name, "option": "--to"},
            )
        begun = lifetime or Lifetime.begin(length_s, now_s, from_spec=False)
        extended = begun.extended(length_s, now_s)
        attrs.evolve(life, lifetime=extended).write(machine.folder)
    timer.install()
    return extended
