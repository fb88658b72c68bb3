"""Scratch space while a machine starts, halts and resumes. The driver, the image store and ssh are doubles."""

from __future__ import annotations

import attrs
import feignedworld
import pytest
from feignedworld import World, up

from kimbox.actions import stop
from kimbox.actions import up as starting
from kimbox.actions.resume import resume
from kimbox.machine.state import State
from kimbox.spec.model import Scratch

world = feignedworld.world  # a fixture


def test_scratch_space_lives_as_long_as_a_run(world: World) -> None:
    """Halt removes it, also after a crash. A suspended box keeps it, until its saved state is discarded."""
    world.box = attrs.evolve(world.box, scratch=Scratch(1 << 30, "/staging"))
    up(world)
    assert world.box.scratch == world.launches[-1].record.scratch == world.machine.record().scratch
    world.machine.scratch.touch()
    stop.suspend(world.machine)
    assert world.machine.scratch.exists()
    resume(world.machine)
    assert world.box.scratch == world.launches[-1].record.scratch
    stop.halt(world.machine)
    assert not world.machine.scratch.exists()
    up(world)
    world.machine.scratch.touch()
    world.end_process()
    assert State.CRASHED is stop.halt(world.machine)
    assert not world.machine.scratch.exists()


def test_a_saved_state_wakes_with_its_own_scratch_space(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed spec applies at the next start; `up` warns of it while the box runs."""
    warned: list[str] = []
    monkeypatch.setattr(starting.log, "warn", warned.append)
    before = world.box
    world.box = attrs.evolve(before, scratch=Scratch(1 << 30, "/staging"))
    up(world)
    assert [] == warned
    stop.suspend(world.machine)
    world.box = attrs.evolve(before, scratch=Scratch(2 << 30, "/mnt/scratch"))
    up(world)
    assert Scratch(1 << 30, "/staging") == world.launches[-1].record.scratch == world.machine.record().scratch
    up(world)
    change = "the spec of tiny has changed (scratch space 1.0 GiB at /staging -> 2.0 GiB at /mnt/scratch)"
    resumed = f"{change}: `kimbox reload tiny` applies that after the box has resumed"
    assert [resumed, f"{change}: `kimbox reload tiny` applies that"] == warned
    stop.halt(world.machine)
    world.boot = [*world.boot[:-1], *world.after]
    up(world)
    assert world.box.scratch == world.launches[-1].record.scratch == world.machine.record().scratch
