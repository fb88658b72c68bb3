"""The boot mode of a box: the mode that each start sets, the errors, and the effects of maintain mode."""

from __future__ import annotations

import attrs
import feignedworld
import makemachine
import pytest
from fakedriver import FakeDriver
from feignedworld import World, up
from makemachine import event, tell
from refused import refused
from tinyimage import LOCKED

from kimbox.actions import provision as provisioning
from kimbox.actions import stop
from kimbox.actions.lifecycle import readiness
from kimbox.actions.observe import state
from kimbox.drivers.base import Launch
from kimbox.errors import GuestError, StateError
from kimbox.image import obtain
from kimbox.machine.bootmode import Choice, NoEnvironment
from kimbox.machine.record import Record
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.spec.model import BootMode

KEEP, RESNAP, MAINTAIN = BootMode.KEEP, BootMode.RESNAP, BootMode.MAINTAIN

world = feignedworld.world  # a fixture


def test_every_start_sets_the_mode(world: World) -> None:
    """The mode of the command line, or else of the spec. `once` is for one boot, and not kept."""
    for choice, spec, expected in (
        (Choice(), KEEP, ("keep", None)),
        (Choice(RESNAP), KEEP, ("resnap", None)),
        (Choice(), KEEP, ("keep", None)),
        (Choice(MAINTAIN, once=True), RESNAP, ("resnap", "maintain")),
        (Choice(), RESNAP, ("resnap", None)),
        (Choice(KEEP, once=True), KEEP, ("keep", "keep")),
    ):
        world.box = attrs.evolve(world.box, boot=spec)
        up(world, boot=choice)
        stop.halt(world.machine)
        assert expected == world.modes[-1]
    assert 6 == len(world.modes)
    assert [] == [key for key in world.machine.record().as_json() if "boot" in key or "mode" in key]


def test_a_change_of_the_mode_keeps_the_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the image does not depend on the mode."""
    monkeypatch.undo()
    keys = {obtain.key_of(attrs.evolve(world.box, boot=mode), LOCKED) for mode in BootMode}
    assert 1 == len(keys)


def test_the_mode_of_a_running_box_is_not_changed(world: World) -> None:
    """The hint has the command that changes it. If the box runs in that mode, nothing is done."""
    up(world)
    for choice, mode, command in (
        (Choice(RESNAP), "resnap", "`kimbox reload --boot resnap tiny`"),
        (Choice(MAINTAIN, once=True), "maintain", "`kimbox reload --boot maintain --once tiny`"),
    ):
        with refused(StateError, "restart-required", name="tiny", current="keep", mode=mode) as caught:
            up(world, boot=choice)
        assert command in str(caught.value.hint)
        assert f"tiny runs in mode keep: the mode {mode} requires a restart" == caught.value.message
    world.did.clear()
    assert State.READY is up(world, boot=Choice(KEEP))
    assert ([], [("keep", None)]) == (world.did, world.modes)
    world.machine.events_file.write_text("")
    with refused(StateError, "restart-required", name="tiny", current=""):
        up(world, boot=Choice(KEEP))


def test_a_stopped_box_resumes_in_its_mode(world: World) -> None:
    """A paused or suspended box cannot change its mode. Its saved state and its disk are not changed."""
    up(world)
    world.status = "paused"
    with refused(StateError, "wrong-state", name="tiny", state="paused"):
        up(world, boot=Choice(KEEP))
    world.status = "running"
    stop.suspend(world.machine)
    with refused(StateError, "wrong-state", name="tiny", state="suspended") as caught:
        up(world, boot=Choice(RESNAP))
    assert "`kimbox resume tiny`" in str(caught.value.hint)
    up(world)
    assert [("keep", None)] == world.modes


def test_an_image_without_modes(world: World) -> None:
    """It boots its only root. It is an error if the spec or the command line has another mode."""
    world.no_modes = NoEnvironment("the disk of tiny has no environment")
    up(world)
    stop.halt(world.machine)
    with pytest.raises(NoEnvironment):
        up(world, boot=Choice(KEEP))
    world.box = attrs.evolve(world.box, boot=RESNAP)
    with pytest.raises(NoEnvironment):
        up(world)
    assert State.HALTED is state(world.machine)
    assert 1 == world.did.count("start")


def maintained(world: World) -> None:
    """Makes the guest report maintain mode."""
    world.boot = [event("booting", mode="maintain"), event("hostkey", key=makemachine.HOST_KEY), event("sshd")]
    world.boot += [event("ready", manifest="", mode="maintain")]


def test_nothing_is_provisioned_in_maintain_mode(world: World) -> None:
    """The box is ready when it reports it, at each start. `provision` is an error with a hint."""
    maintained(world)
    up(world, boot=Choice(MAINTAIN))
    assert ["image", "disk", "start"] == world.did
    assert State.READY is state(world.machine)
    assert State.READY is up(world)
    assert State.READY is up(world, boot=Choice(MAINTAIN))
    assert ["image", "disk", "start"] == world.did
    with refused(StateError, "maintain-mode", name="tiny") as caught:
        provisioning.provision(Project(world.box))
    assert "`kimbox reload tiny`" in str(caught.value.hint)


def test_maintain_mode_that_fails(world: World) -> None:
    """The error has the reason that the guest reported."""
    maintained(world)
    world.boot[-1] = event("failed", manifest="", kind="provisiond", name="persistent", exit=1, reason="no space")
    with pytest.raises(GuestError, match="no space"):
        up(world, boot=Choice(MAINTAIN))


def test_an_initramfs_without_a_root(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` fails without a wait, with the reason of the guest and a hint. The state is crashed, not halted."""
    reason = "the snapshot vg/root_snap is full"
    world.boot = [event("failed", manifest="", kind="boot", name="root_snap", exit=1, reason=reason)]
    start = FakeDriver.start

    def start_and_end(driver: FakeDriver, launch: Launch) -> Record:
        record = start(driver, launch)
        world.machine.serial_log.write_bytes(b"[  5.1] reboot: Power down\r\n")
        world.end_process()
        return record

    monkeypatch.setattr(FakeDriver, "start", start_and_end)
    for provision in (True, False):
        with pytest.raises(GuestError, match=f"tiny did not boot: {reason}") as failed:
            up(world, timeout_s=600, provision=provision)
        assert "`kimbox up --boot resnap tiny`" in str(failed.value.hint)
        assert State.CRASHED is state(world.machine)
    monkeypatch.setattr(FakeDriver, "start", start)
    world.boot = [event("booting", mode="resnap"), event("hostkey", key=makemachine.HOST_KEY), event("sshd")]
    world.boot += [event("waiting")]
    assert State.CRASHED is up(world, boot=Choice(RESNAP))
    assert ("resnap", None) == world.modes[-1]


def test_a_guest_that_reports_a_full_snapshot(world: World) -> None:
    """Its event ends the wait for provisioning."""
    lost = event("failed", manifest="", kind="snapshot", name="root_snap", exit=1, reason="vg/root_snap was full")
    world.after = [event("provisioning", manifest=world.digest), lost]
    with pytest.raises(GuestError, match="tiny lost its root: vg/root_snap was full"):
        up(world, timeout_s=600)


def test_a_snapshot_that_fills_up(world: World) -> None:
    """The state is failed after any earlier event. `up` has a hint, and sends nothing to the box."""
    up(world)
    with world.machine.serial_log.open("ab") as console:
        console.write(
            b"  Booting `keep: the snapshot'\r\n[ 9.1] device-mapper: snapshots: Invalidating snapshot: Unable "
        )
    assert State.FAILED is state(world.machine)
    world.did.clear()
    with pytest.raises(GuestError, match="snapshot of root is full") as failed:
        up(world)
    assert "kimbox reload --boot resnap" in str(failed.value.hint)
    with pytest.raises(GuestError, match="snapshot of root is full"):
        provisioning.provision(Project(world.box))
    assert [] == world.did
    with world.machine.serial_log.open("ab") as console:
        console.write(b"\x1b[1;1H  Booting `pristine: a new snapshot of root'\r\n")
    assert State.READY is state(world.machine)


def test_setup_that_fills_the_snapshot(world: World) -> None:
    """The host reads it from the console while it waits for the step, which does not end."""
    console = b"device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception.\r\n"
    world.machine.folder.mkdir(parents=True)
    world.after = [event("provisioning", manifest=world.digest)]

    def deliver(*_: object) -> str:
        tell(world.machine, *world.after)
        world.machine.serial_log.write_bytes(console)
        return world.digest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readiness, "deliver", deliver)
        with pytest.raises(GuestError, match="snapshot of root is full"):
            up(world, timeout_s=600)
