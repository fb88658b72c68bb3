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


def test_the_lock_of_a_sent_manifest_is_kept(world: World) -> None:
    """Later commands read from it what a box runs."""
    up(world)
    lock = delivered_locks.lock_of(world.machine)
    assert (world.lock.repositories, world.lock.spec_digest) == (lock.repositories, lock.spec_digest)


def test_locked_and_offline_reach_lock_and_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock gets both settings, the image only `offline`."""
    calls: list[object] = []

    def lock_for(project: Project) -> Locked:
        calls.append((project.frozen, project.offline))
        return Locked(world.lock, {}, None, "e" * 64)

    monkeypatch.setattr(plan, "lock_for", lock_for)
    leased = obtain.leased

    def leased_and_recorded(*_: object, offline: bool) -> Any:
        calls.append(f"image, offline: {offline}")
        return leased(world.box, None)

    monkeypatch.setattr(obtain, "leased", leased_and_recorded)
    up(world, project=Project(world.box, frozen=True))
    stop.destroy(world.machine)
    up(world, project=Project(world.box, offline=True))
    assert [(True, False), "image, offline: False", (False, True), "image, offline: True"] == calls
