"""Snapshots of a box in every state, with a driver double: save, restore, delete, and what is refused."""

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
    """The call that sets the clock is recorded, and no clock is set."""
    monkeypatch.setattr(snapshot, "set_clock", lambda _: world.did.append("clock"))


def test_a_running_box_continues_from_the_snapshot(world: World) -> None:
    """QEMU ends and starts from the snapshot. The events are those of that moment."""
    up(world)
    assert State.READY is snapshot.save(world.machine, "one")
    saved_events = world.machine.events_file.read_text()
    tell(world.machine, event("failed", kind="provision", name="later"))
    assert State.FAILED is state(world.machine)
    world.did.clear()
    assert State.READY is snapshot.restore(world.machine, "one")
    assert ["kill", "resume", "clock"] == world.did
    assert world.launches[-1].resume
    assert saved_events == world.machine.events_file.read_text()
    assert world.machine.record().ended is None


def test_a_box_that_was_halted_is_halted_after_a_restore(world: World) -> None:
    """Also if it runs before the restore: the disk is restored, and nothing runs."""
    up(world)
    stop.halt(world.machine)
    assert State.HALTED is snapshot.save(world.machine, "off")
    up(world)
    world.did.clear()
    assert State.HALTED is snapshot.restore(world.machine, "off")
    assert ["kill", "revert off"] == world.did
    assert Ended.HALTED is world.machine.record().ended


def test_processors_and_memory_are_those_of_the_snapshot(world: World) -> None:
    """A saved memory can only be restored in a machine with the same number of processors."""
    up(world)
    snapshot.save(world.machine, "one")
    stop.halt(world.machine)
    world.box = attrs.evolve(world.box, cpus=4)
    up(world)
    snapshot.restore(world.machine, "one")
    assert 1 == world.launches[-1].cpus == world.machine.record().cpus


def test_a_name_is_used_once(world: World) -> None:
    """A snapshot is never overwritten. After it is deleted, it is not listed, and its name is free."""
    up(world)
    snapshot.save(world.machine, "one")
    with refused(StateError, "snapshot-exists", name="tiny", snapshot="one"):
        snapshot.save(world.machine, "one")
    snapshot.delete(world.machine, "one")
    assert [] == snapshot.names(world.machine)
    with refused(StateError, "snapshot-not-found", name="tiny", snapshot="one"):
        snapshot.restore(world.machine, "one")
    snapshot.save(world.machine, "one")
    assert ["one"] == snapshot.names(world.machine)


def test_a_failed_save_leaves_no_snapshot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed snapshot is not listed. The next attempt first removes its parts."""

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


def test_refused_snapshots(world: World) -> None:
    """Of a paused box, of a running box with scratch space, of a box that does not exist; and invalid names."""
    with refused(StateError, "box-not-found", name="tiny"):
        snapshot.save(world.machine, "one")
    up(world)
    record = world.machine.record()
    world.machine.write_record(attrs.evolve(record, scratch=Scratch(1 << 30, "/staging")))
    with refused(StateError, "wrong-state", name="tiny", state="ready", reason="scratch"):
        snapshot.save(world.machine, "one")
    world.status = "paused"
    with refused(StateError, "wrong-state", name="tiny", state="paused", reason="state"):
        snapshot.save(world.machine, "one")
    for name in ("", "a/b", "..", "-x", "A", "a" * 64, "a b"):
        with refused(UsageError, "bad-name", snapshot=name):
            snapshot.check_name(name)


def test_listing_takes_no_lock(world: World) -> None:
    """It works while another command starts the box."""
    up(world)
    with world.machine.locked():
        assert [] == snapshot.names(Machine("tiny"))


def test_a_deletion_that_was_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is not listed and cannot be restored. It is deleted again, whatever the disk still has of it."""
    up(world)
    snapshot.save(world.machine, "one")
    with monkeypatch.context() as cut:
        cut.setattr(FakeDriver, "delete_snapshot", interrupt)
        with pytest.raises(KeyboardInterrupt):
            snapshot.delete(world.machine, "one")
    assert [] == snapshot.names(world.machine)
    with refused(StateError, "snapshot-not-found", name="tiny", snapshot="one"):
        snapshot.restore(world.machine, "one")
    with monkeypatch.context() as gone:
        gone.setattr(FakeDriver, "delete_snapshot", fail)
        snapshot.delete(world.machine, "one")
    assert not (world.machine.snapshots / "one").exists()
    with refused(StateError, "snapshot-not-found", name="tiny", snapshot="one"):
        snapshot.delete(world.machine, "one")


def test_a_deletion_that_fails_leaves_the_snapshot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed as before."""
    up(world)
    snapshot.save(world.machine, "one")
    monkeypatch.setattr(FakeDriver, "delete_snapshot", fail)
    with refused(GuestError, "qemu-failed"):
        snapshot.delete(world.machine, "one")
    assert ["one"] == snapshot.names(world.machine)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fail(*_: object) -> None:
    raise GuestError("QEMU failed", code="qemu-failed")
