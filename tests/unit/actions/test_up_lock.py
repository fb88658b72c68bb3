"""What `up` does with the lock. The driver, the image store and ssh are doubles."""

from __future__ import annotations

from typing import Any

import feignedworld
import pytest
from feignedworld import World, up

from kimbox.actions import stop
from kimbox.image import obtain
from kimbox.machine import delivered_locks
from kimbox.project import plan
from kimbox.project.pins import Locked
from kimbox.project.project import Project

world = feignedworld.world  # a fixture


def test_what_a_box_runs_is_known_afterwards(world: World) -> None:
    """The lock of each manifest that is sent is kept."""
    up(world)
    lock = delivered_locks.lock_of(world.machine)
    assert (world.lock.repositories, world.lock.spec_digest) == (lock.repositories, lock.spec_digest)


def test_locked_and_offline_reach_lock_and_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are asked for where they matter, and only then."""
    asked: list[object] = []

    def lock_for(project: Project) -> Locked:
        asked.append((project.frozen, project.offline))
        return Locked(world.lock, {}, None, "e" * 64)

    monkeypatch.setattr(plan, "lock_for", lock_for)
    leased = obtain.leased

    def noting(*_: object, offline: bool) -> Any:
        asked.append(f"image, offline: {offline}")
        return leased(world.box, None)

    monkeypatch.setattr(obtain, "leased", noting)
    up(world, project=Project(world.box, frozen=True))
    stop.destroy(world.machine)
    up(world, project=Project(world.box, offline=True))
    assert [(True, False), "image, offline: False", (False, True), "image, offline: True"] == asked
