"""Snapshots of a box from every state, with a driver double: what is kept, gone back to, and refused."""

from __future__ import annotations

import attrs
import feignedworld
import pytest
from fakedriver import FakeDriver
from feignedworld import World, up
from makemachine import event, tell
from refused import refused

from kimbox.actions import snapshot, stop
from kimbox.actions.observe import state
from kimbox.errors import GuestError, StateError, UsageError
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.machine.state import State
from kimbox.spec.model import Scratch

world = feignedworld.world  # a fixture


@pytest.fixture(autouse=True)
def quiet_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is noted and not set."""
    monkeypatch.setattr(snapshot, "set_clock", lambda _: world.did.append("clock"))


def test_a_box_that_runs_goes_on_where_it_stood(world: World) -> None:
    """QEMU ends and starts from the snapshot; what the guest had told by then is what it has told."""
    up(world)
    assert State.READY is snapshot.save(world.machine, "one")
    told = world.machine.events_file.read_text()
    tell(world.machine, event("failed", kind="provision", name="later"))
    assert State.FAILED is state(world.machine)
    world.did.clear()
    assert State.READY is snapshot.restore(world.machine, "one")
    assert ["kill", "resume", "clock"] == world.did
    assert world.launches[-1].resume
    assert told == world.machine.events_file.read_text()
    assert world.machine.record().ended is None


def test_a_halted_box_is_halted_again(world: World) -> None:
    """Whatever it does when it is told to go back: the disk is what it was, and nothing runs."""
    up(world)
    stop.halt(world.machine)
    assert State.HALTED is snapshot.save(world.machine, "off")
    up(world)
    world.did.clear()
    assert State.HALTED is snapshot.restore(world.machine, "off")
    assert ["kill", "revert off"] == world.did
    assert Ended.HALTED is world.machine.record().ended


def test_the_shape_is_that_of_the_snapshot(world: World) -> None:
    """A saved memory wakes only in a machine with as many processors."""
    up(world)
    snapshot.save(world.machine, "one")
    stop.halt(world.machine)
    world.box = attrs.evolve(world.box, cpus=4)
    up(world)
    snapshot.restore(world.machine, "one")
    assert 1 == world.launches[-1].cpus == world.machine.record().cpus


def test_a_name_is_taken_once(world: World) -> None:
    """A snapshot is never written over; removed, its name is free again, and it is listed no more."""
    up(world)
    snapshot.save(world.machine, "one")
    with pytest.raises(StateError, match="has a snapshot one already"):
        snapshot.save(world.machine, "one")
    snapshot.delete(world.machine, "one")
    assert [] == snapshot.names(world.machine)
    with pytest.raises(StateError, match="has no snapshot one"):
        snapshot.restore(world.machine, "one")
    snapshot.save(world.machine, "one")
    assert ["one"] == snapshot.names(world.machine)


def test_one_that_failed_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that the disk could not take is not listed; what there is of it goes before the next try."""

    def fail(*_: object) -> None:
        raise GuestError("no space")

    up(world)
    with monkeypatch.context() as broken:
        broken.setattr(FakeDriver, "save_snapshot", fail)
        with pytest.raises(GuestError, match="no space"):
            snapshot.save(world.machine, "one")
    assert [] == snapshot.names(world.machine)
    assert State.READY is state(world.machine)
    world.did.clear()
    snapshot.save(world.machine, "one")
    assert ["remove one", "keep one"] == world.did
    assert ["one"] == snapshot.names(world.machine)


def test_what_cannot_be_kept_is_refused(world: World) -> None:
    """A box that sleeps, one with scratch space that runs, one that is not there; a name that is none."""
    with refused(StateError, "box-not-found", name="tiny"):
        snapshot.save(world.machine, "one")
    up(world)
    record = world.machine.record()
    world.machine.write_record(attrs.evolve(record, scratch=Scratch(1 << 30, "/staging")))
    with pytest.raises(StateError, match="has scratch space"):
        snapshot.save(world.machine, "one")
    world.status = "paused"
    with pytest.raises(StateError, match="cannot keep tiny: the box is paused"):
        snapshot.save(world.machine, "one")
    for name in ("", "a/b", "..", "-x", "A", "a" * 64, "a b"):
        with pytest.raises(UsageError, match="cannot be the name"):
            snapshot.check_name(name)


def test_listing_touches_nothing(world: World) -> None:
    """It takes no lock, so that it answers while a box comes up."""
    up(world)
    with world.machine.locked():
        assert [] == snapshot.names(Machine("tiny"))
