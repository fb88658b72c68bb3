"""What `up` does with the lock. The driver, the image store and ssh are doubles."""

from __future__ import annotations

from typing import Any

import feignedworld
import pytest
from feignedworld import World, up

from kimbox.actions import life, stop
from kimbox.actions.life import Up
from kimbox.image import obtain
from kimbox.machine import ran

world = feignedworld.world  # a fixture


def test_what_a_box_runs_is_known_afterwards(world: World) -> None:
    """The lock of each manifest that is sent is kept."""
    up(world)
    lock = ran.lock_of(world.machine)
    assert (world.lock.repositories, world.lock.spec_digest) == (lock.repositories, lock.spec_digest)


def test_locked_and_offline_reach_lock_and_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are asked for where they matter, and only then."""
    asked: list[object] = []

    def lock_for(*_: object, frozen: bool, offline: bool, **__: object) -> Any:
        asked.append((frozen, offline))
        return world.lock, {}

    monkeypatch.setattr(life, "lock_for", lock_for)
    leased = obtain.leased

    def noting(*_: object, offline: bool) -> Any:
        asked.append(f"image, offline: {offline}")
        return leased(world.box, None)

    monkeypatch.setattr(obtain, "leased", noting)
    life.up(Up(world.box, locked=True))
    stop.destroy(world.machine)
    life.up(Up(world.box, offline=True))
    assert [(True, False), "image, offline: False", (False, True), "image, offline: True"] == asked
