"""A project whose folder was moved keeps its machine."""

from __future__ import annotations

from pathlib import Path

import attrs
import feignedworld
import pytest
from feignedworld import World, up
from refused import refused

from kimbox.actions.observe import check_owner
from kimbox.errors import StateError
from kimbox.machine import folder as machine_folder
from kimbox.machine.state import State
from kimbox.project.project import Project

world = feignedworld.world  # a fixture


def test_a_spec_that_was_moved(world: World, tmp_path: Path) -> None:
    """The machine is adopted if the old file is gone and the content is that of the last start or provisioning."""
    up(world)
    moved = attrs.evolve(world.box, source=tmp_path / "moved/kimbox.yaml")
    moved.source.parent.mkdir()
    world.box.source.touch()
    world.box = moved
    with refused(StateError, "name-taken", name="tiny"):
        up(world)
    (tmp_path / "kimbox.yaml").unlink()
    world.box = attrs.evolve(moved, digest="c" * 64)
    with refused(StateError, "name-taken", name="tiny") as caught:
        up(world)
    assert "that file is gone, but this spec differs" in (caught.value.hint or "")
    world.box = moved
    assert State.READY is up(world)
    assert str(moved.source) == world.machine.record().source


def test_a_spec_that_was_changed_provisioned_and_moved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that was sent last has the digest of the spec. A busy machine is adopted by a later call."""
    monkeypatch.setattr(machine_folder, "LOCK_WAIT_S", 0)
    up(world)
    moved = attrs.evolve(world.box, source=tmp_path / "moved/kimbox.yaml")
    world.machine.write_record(attrs.evolve(world.machine.record(), spec_digest="b" * 64))
    world.machine.locks.rename(tmp_path / "locks")
    with refused(StateError, "name-taken", name="tiny"):
        check_owner(world.machine, Project(moved))
    (tmp_path / "locks").rename(world.machine.locks)
    with world.machine.locked():
        check_owner(world.machine, Project(moved))
    assert str(world.box.source) == world.machine.record().source  # another process has the lock
    check_owner(world.machine, Project(moved))
    assert str(moved.source) == world.machine.record().source


def test_a_spec_that_cannot_be_reached_is_not_gone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without permission, or on a disk with errors, the file may exist."""
    up(world)

    def unreachable(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "lstat", unreachable)
    with refused(StateError, "name-taken", name="tiny"):
        check_owner(world.machine, Project(attrs.evolve(world.box, source=tmp_path / "moved/kimbox.yaml")))
