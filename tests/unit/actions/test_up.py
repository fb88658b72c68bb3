"""What each verb does, from every state. Driver, image store and ssh are doubles that note what they did."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import feignedworld
import makemachine
import pytest
from fakedriver import FakeDriver
from feignedworld import FakeGuest, World, up
from makemachine import event
from refused import refused

from kimbox import paths
from kimbox.actions import prune, stop
from kimbox.actions.lifecycle import readiness
from kimbox.actions.lifecycle import start as starting
from kimbox.actions.observe import state
from kimbox.actions.provision import provision
from kimbox.actions.resume import resume
from kimbox.drivers.base import Launch
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import locked
from kimbox.image import obtain
from kimbox.image.store import images
from kimbox.machine.folder import Machine, machines
from kimbox.machine.record import Ended, PlanDigests, Purpose
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.spec.model import Mode, Run, Step

world = feignedworld.world  # a fixture


def test_from_nothing_to_ready(world: World) -> None:
    """Image, disk, process, manifest: in this order, once each; a key of its own; recorded as running."""
    assert State.ABSENT is up(world)
    assert ["image", "disk", "start", "deliver"] == world.did
    assert State.READY is state(world.machine)
    record = world.machine.record()
    assert (None, str(world.box.source), "e" * 64) == (record.ended, record.source, record.image)
    assert (world.box.cpus, world.box.memory_bytes) == (record.cpus, record.memory_bytes)
    assert ("tiny", Purpose.BOX, "qemu") == (record.box, record.purpose, record.driver)
    assert PlanDigests(world.box.digest, world.lock.digest, world.digest) == record.plan
    assert "PRIVATE KEY" in world.machine.key.read_text()
    assert not world.machine.unfinished.exists()


def test_what_is_ready_is_left_alone(world: World) -> None:
    """The same manifest: nothing is done. Another one: it is brought, and no process is started."""
    up(world)
    world.did.clear()
    assert State.READY is up(world)
    assert [] == world.did
    world.box = attrs.evolve(world.box, provision=(Step("more", "true", Mode.SYSTEM, Run.ONCE, 60),))
    world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
    assert State.READY is up(world)
    assert ["deliver"] == world.did


def test_a_halted_box_is_started_with_what_the_spec_says_now(world: World) -> None:
    """The box that is at its manifest already needs no second delivery."""
    up(world)
    stop.halt(world.machine)
    world.did.clear()
    world.boot = [*world.boot[:-1], *world.after]
    world.box = attrs.evolve(world.box, cpus=4)
    assert State.HALTED is up(world)
    assert ["start"] == world.did
    assert 4 == world.launches[-1].cpus == world.machine.record().cpus


def test_without_provisioning(world: World) -> None:
    """`--no-provision` boots, and changes nothing inside."""
    up(world, provision=False)
    assert "deliver" not in world.did


def test_a_failed_box_is_tried_again(world: World) -> None:
    """The error carries the step; the next `up` delivers anew and believes only the new answer."""
    ready = world.after
    world.after = [event("failed", manifest=world.digest, kind="provision", name="make", exit=2, reason="no")]
    with pytest.raises(GuestError, match=r"failed at provision make \(exit status 2\)"):
        up(world)
    assert State.FAILED is state(world.machine)
    with pytest.raises(GuestError, match="failed at provision make"):
        up(world)
    world.after = ready
    world.did.clear()
    assert State.FAILED is up(world)
    assert ["deliver"] == world.did


def test_provision_needs_a_running_box(world: World) -> None:
    """And brings the manifest even where nothing has changed."""
    with pytest.raises(StateError, match="cannot provision tiny"):
        provision(Project(world.box))
    up(world)
    world.did.clear()
    provision(Project(world.box))
    assert ["deliver"] == world.did


def test_a_name_belongs_to_one_spec(world: World, tmp_path: Path) -> None:
    """Another spec of the same name is told whose it is; the same file under another path is the same spec."""
    up(world)
    world.box.source.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    same, ours = attrs.evolve(world.box, source=tmp_path / "link/kimbox.yaml"), world.box.source
    world.box = same
    assert State.READY is up(world)
    world.box = attrs.evolve(same, source=tmp_path / "other.yaml")
    for project in (Project(world.box), Project(world.box, "tiny")):
        with pytest.raises(
            StateError, match=rf"the name tiny belongs to the spec .*{ours.name}, not to .*other\.yaml"
        ) as e:
            up(world, project=project)
        assert "kimbox destroy tiny" in str(e.value.hint)


def test_a_shipped_box_may_move(world: World, tmp_path: Path) -> None:
    """An update of kimbox puts its boxes elsewhere: the name counts."""
    up(world, shipped="tiny")
    world.box = attrs.evolve(world.box, source=tmp_path / "elsewhere/tiny.yaml")
    assert State.READY is up(world, shipped="tiny")


def test_what_an_interruption_left_is_removed(world: World) -> None:
    """A folder in the making, and one half destroyed, are no machines; `up` makes a new one in their place."""
    world.machine.unfinished.mkdir(parents=True)
    (world.machine.unfinished / "id_ed25519").write_text("old")
    world.machine.folder.mkdir()
    world.machine.disk.write_text("old")
    assert State.ABSENT is up(world)
    assert "" == world.machine.disk.read_text()
    assert not world.machine.unfinished.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, KimboxError("no space"), OSError(28, "no space")])
@pytest.mark.parametrize("where", ["leased", "create", "start", "deliver"])
def test_nothing_stays_locked_or_half_made(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, error: Any
) -> None:
    """However `up` ends, another one goes on from there."""

    def fail(*_: object, **__: object) -> None:
        raise error

    owner = {"leased": obtain, "deliver": readiness}.get(where, FakeDriver)
    with monkeypatch.context() as broken:
        broken.setattr(owner, where, fail)
        with pytest.raises((KeyboardInterrupt, KimboxError, OSError)):
            up(world)
    assert not world.machine.unfinished.exists()
    with locked(paths.machines_dir() / ".ports.lock"), world.machine.locked():
        pass
    up(world)
    assert State.READY is state(world.machine)


def test_a_start_that_nobody_recorded_is_mended(world: World) -> None:
    """kimbox was killed between starting the process and saying so: it is said now."""
    up(world)
    world.machine.write_record(attrs.evolve(world.machine.record(), ended=Ended.SUSPENDED))
    assert State.READY is state(world.machine)
    up(world)
    assert world.machine.record().ended is None


def test_halt(world: World) -> None:
    """The power button; the plug if that does not help, or is not wanted; a halted box stays halted."""
    up(world)
    world.did.clear()
    assert State.READY is stop.halt(world.machine)
    assert State.HALTED is stop.halt(world.machine)
    assert ["power button"] == world.did
    up(world)
    world.did.clear()
    world.on_power = False
    stop.halt(world.machine, timeout_s=0.01)
    assert ["power button", "kill"] == world.did
    up(world)
    world.did.clear()
    stop.halt(world.machine, force=True)
    assert ["kill"] == world.did
    up(world)
    world.status = "paused"
    assert State.PAUSED is stop.halt(world.machine)
    assert State.HALTED is state(world.machine)
    with pytest.raises(StateError, match="no box other"):
        stop.halt(Machine("other"))


def test_suspend_and_resume_keep_the_events(world: World) -> None:
    """The guest goes on in its boot and tells nothing again: ready before is ready after, with the clock set right."""
    up(world)
    world.did.clear()
    stop.suspend(world.machine)
    assert ["save", "kill"] == world.did
    assert State.SUSPENDED is state(world.machine)
    with pytest.raises(StateError, match="cannot suspend tiny: the box is suspended"):
        stop.suspend(world.machine)
    world.did.clear()
    resume(world.machine)
    assert ["resume", "forget", "clock"] == world.did
    assert (1, world.box.memory_bytes) == (world.launches[-1].cpus, world.launches[-1].memory_bytes)
    assert State.READY is state(world.machine)
    assert world.machine.record().ended is None
    with pytest.raises(StateError, match="cannot resume tiny"):
        resume(world.machine)


def test_a_box_resumes_without_its_spec(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record holds cpus, memory and ports; a port that is taken meanwhile is replaced, and a forward stays one."""
    makemachine.make_machine(ended=Ended.SUSPENDED, cpus=3, memory_bytes=7)
    before = world.machine.record()
    monkeypatch.setattr("kimbox.machine.ports.is_free", lambda port: port != 20023)
    resume(world.machine)
    assert (3, 7) == (world.launches[-1].cpus, world.launches[-1].memory_bytes)
    record = world.machine.record()
    assert (before.ssh_port, {8888: 20024}, before.source) == (record.ssh_port, record.forwards, record.source)


def test_up_wakes_a_suspended_box(world: World) -> None:
    """As `resume`; what it was ready with counts, so that nothing is delivered."""
    up(world)
    stop.suspend(world.machine)
    world.did.clear()
    assert State.SUSPENDED is up(world)
    assert ["resume", "forget", "clock"] == world.did


def test_a_resume_that_fails_forgets_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved state is there for the next try, and the hint says how to do without."""
    up(world)
    stop.suspend(world.machine)

    def fail(*_: Launch) -> None:
        raise GuestError("QEMU did not start tiny")

    with monkeypatch.context() as broken:
        broken.setattr(FakeDriver, "start", fail)
        with pytest.raises(GuestError) as failed:
            resume(world.machine)
    assert "kimbox halt --force tiny" in str(failed.value.hint)
    assert State.SUSPENDED is state(world.machine)
    assert State.SUSPENDED is stop.halt(world.machine)
    assert State.SUSPENDED is state(world.machine)
    stop.halt(world.machine, force=True)
    assert ("drop", State.HALTED) == (world.did[-1], state(world.machine))


def test_a_paused_box_goes_on(world: World) -> None:
    """With `resume` as with `up`; no process is started. A clock that cannot be set is a warning."""
    up(world)
    world.status = "paused"
    world.did.clear()
    resume(world.machine)
    assert State.PAUSED is up(world)
    assert ["unpause", "clock"] * 2 == world.did


def test_the_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set over ssh; if that fails the box goes on all the same."""
    monkeypatch.undo()
    monkeypatch.setenv("KIMBOX_HOME", str(world.box.source.parent / "home"))
    monkeypatch.setattr(starting, "Guest", FakeGuest)
    machine = makemachine.make_machine()
    starting.set_clock(machine)
    monkeypatch.setattr(FakeGuest, "code", 1)
    with pytest.raises(GuestError, match="clock cannot be set: no"):
        starting.set_clock(machine)


def test_destroy(world: World) -> None:
    """Running, half made, damaged or not there: nothing is left of it but the file of its lock."""
    assert not stop.destroy(world.machine)
    up(world)
    world.did.clear()
    assert stop.destroy(world.machine)
    assert ["kill"] == world.did
    world.machine.folder.mkdir()
    (world.machine.folder / "machine.json").write_text("{")
    world.machine.unfinished.mkdir()
    assert stop.destroy(world.machine)
    assert ["tiny.lock"] == [p.name for p in paths.machines_dir().iterdir() if not p.name.startswith(".ports")]
    assert [] == machines()


def test_who_waits_for_a_box_that_is_destroyed_holds_its_lock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays the one that others lock: two kimboxes would hold two files else, and both work."""
    makemachine.make_machine()
    monkeypatch.setattr("kimbox.machine.folder.LOCK_WAIT_S", 0.0)
    with world.machine.locked():
        pass
    with world.machine.lock_file.open() as waiting:
        stop.destroy(world.machine)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with refused(StateError, "busy", path=str(world.machine.lock_file)), world.machine.locked():
            pass


def test_prune_leaves_the_image_of_a_machine_that_is_being_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the image to the record of the machine `prune` cannot remove it; the ports are not locked meanwhile."""
    stored = images.folder("e" * 64)
    stored.mkdir(parents=True)
    (stored / images.FACTS).touch()
    removed: list[object] = []

    def create(driver: FakeDriver, folder: Path, *_: object) -> None:
        assert [stored] == [item.path for item in prune.unused()]
        removed.extend(prune.remove(prune.unused()))
        with locked(paths.machines_dir() / ".ports.lock"):
            (folder / driver.machine.disk.name).touch()

    monkeypatch.setattr(FakeDriver, "create", create)
    up(world)
    assert ([], []) == (removed, prune.unused())
    stop.destroy(world.machine)
    assert [stored] == [item.path for item in prune.remove(prune.unused())]
    assert not stored.exists()


def test_an_interrupted_destroy_leaves_no_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record goes first, so that a folder without its disk is never taken for a box."""
    up(world)
    world.end_process()

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stop.destroy(world.machine)
    assert State.ABSENT is state(world.machine)
    assert State.ABSENT is up(world)


def test_another_kimbox_is_told_to_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb that changes a machine takes its lock."""
    makemachine.make_machine()
    monkeypatch.setattr("kimbox.machine.folder.LOCK_WAIT_S", 0.0)

    @contextlib.contextmanager
    def busy(*_: object, **__: object) -> Iterator[None]:
        raise StateError("busy")
        yield

    monkeypatch.setattr("kimbox.machine.folder.locked", busy)
    for verb in (
        lambda: up(world),
        lambda: provision(Project(world.box)),
        lambda: stop.halt(world.machine),
        lambda: stop.suspend(world.machine),
        lambda: resume(world.machine),
        lambda: stop.destroy(world.machine),
    ):
        with pytest.raises(StateError, match="busy"):
            verb()
    assert [] == world.did
