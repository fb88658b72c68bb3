"""What each verb does in every state. Driver, image store and ssh are doubles that record what they did."""

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
from kimbox.spec.model import Box, Mode, Run, Step

world = feignedworld.world  # a fixture


def test_the_first_up(world: World) -> None:
    """Image, disk, process and manifest, in this order, once each. The machine has its own key and a record."""
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


def test_up_of_a_ready_box(world: World) -> None:
    """With the same manifest nothing is done. Another manifest is sent, and no process is started."""
    up(world)
    world.did.clear()
    assert State.READY is up(world)
    assert [] == world.did
    world.box = attrs.evolve(world.box, provision=(Step("more", "true", Mode.SYSTEM, Run.ONCE, 60),))
    world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
    assert State.READY is up(world)
    assert ["deliver"] == world.did


def test_a_halted_box_starts_with_the_present_spec(world: World) -> None:
    """A box that has the manifest already needs no second delivery."""
    up(world)
    stop.halt(world.machine)
    world.did.clear()
    world.boot = [*world.boot[:-1], *world.after]
    world.box = attrs.evolve(world.box, cpus=4)
    assert State.HALTED is up(world)
    assert ["start"] == world.did
    assert 4 == world.launches[-1].cpus == world.machine.record().cpus


def test_without_provisioning(world: World) -> None:
    """`--no-provision` boots the box and sends nothing."""
    up(world, provision=False)
    assert "deliver" not in world.did


def test_a_failed_box_is_provisioned_again(world: World) -> None:
    """The error has the step. The next `up` sends the manifest again and waits for a new result."""
    ready = world.after
    world.after = [event("failed", manifest=world.digest, kind="provision", name="make", exit=2, reason="no")]
    fields = {"name": "tiny", "step_kind": "provision", "step": "make", "reason": "no"}
    with refused(GuestError, "provision-failed", **fields, exit="2"):
        up(world)
    assert State.FAILED is state(world.machine)
    with refused(GuestError, "provision-failed", **fields):
        up(world)
    world.after = ready
    world.did.clear()
    assert State.FAILED is up(world)
    assert ["deliver"] == world.did


def test_provision_needs_a_running_box(world: World) -> None:
    """It sends the manifest even if nothing has changed."""
    with pytest.raises(StateError, match="cannot provision tiny"):
        provision(Project(world.box))
    up(world)
    world.did.clear()
    provision(Project(world.box))
    assert ["deliver"] == world.did


def test_a_name_belongs_to_one_spec(world: World, tmp_path: Path) -> None:
    """The error for another spec names the owner. The same file at another path is the same spec."""
    up(world)
    world.box.source.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    same, ours = attrs.evolve(world.box, source=tmp_path / "link/kimbox.yaml"), world.box.source
    world.box = same
    assert State.READY is up(world)
    world.box = attrs.evolve(same, source=tmp_path / "other.yaml")
    for project in (Project(world.box), Project(world.box, "tiny")):
        spec = str(tmp_path / "other.yaml")
        with refused(StateError, "name-taken", name="tiny", owner=str(world.machine.record().source), spec=spec) as e:
            up(world, project=project)
        assert e.value.fields["owner"].endswith(f"/{ours.name}")
        assert f"belongs to the spec {e.value.fields['owner']}, not to {spec}" in e.value.message
        assert "kimbox destroy tiny" in str(e.value.hint)


def test_another_driver_is_refused(world: World) -> None:
    """A machine keeps its driver. The hint has the commands that create it again."""
    up(world)
    world.did.clear()
    with refused(StateError, "wrong-driver", name="tiny", driver="qemu", requested="vagrant") as failed:
        up(world, driver="vagrant")
    assert "kimbox up --provider vagrant" in str(failed.value.hint)
    assert State.READY is up(world, driver="qemu")
    assert [] == world.did


def test_a_shipped_box_may_move(world: World, tmp_path: Path) -> None:
    """An update of kimbox may move the specs that it ships. Such a box is identified by its name."""
    up(world, shipped="tiny")
    world.box = attrs.evolve(world.box, source=tmp_path / "elsewhere/tiny.yaml")
    assert State.READY is up(world, shipped="tiny")


def test_parts_left_by_an_interruption_are_removed(world: World) -> None:
    """A folder that is not complete, or was destroyed in part, is not a machine. `up` replaces it."""
    world.machine.unfinished.mkdir(parents=True)
    (world.machine.unfinished / "id_ed25519").write_text("old")
    world.machine.folder.mkdir()
    world.machine.disk.write_text("old")
    assert State.ABSENT is up(world)
    assert "" == world.machine.disk.read_text()
    assert not world.machine.unfinished.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, KimboxError("no space"), OSError(28, "no space")])
@pytest.mark.parametrize("where", ["leased", "create", "start", "deliver"])
def test_nothing_stays_locked_or_incomplete(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, error: Any
) -> None:
    """After any failure of `up`, the next `up` completes the work."""

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


def test_a_record_without_the_last_start_is_repaired(world: World) -> None:
    """kimbox was killed after the start of the process and before it wrote the record."""
    up(world)
    world.machine.write_record(attrs.evolve(world.machine.record(), ended=Ended.SUSPENDED))
    assert State.READY is state(world.machine)
    up(world)
    assert world.machine.record().ended is None


def test_halt(world: World) -> None:
    """The power button first. The process is killed after the timeout, or with `force`. A halted box stays halted."""
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
    """The guest continues and sends no event again: it is ready as before, and its clock is set."""
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
    """The record has processors, memory and ports. A port that another process uses now is replaced."""
    makemachine.make_machine(ended=Ended.SUSPENDED, cpus=3, memory_bytes=7)
    before = world.machine.record()
    monkeypatch.setattr("kimbox.machine.ports.is_free", lambda port: port != 20023)
    resume(world.machine)
    assert (3, 7) == (world.launches[-1].cpus, world.launches[-1].memory_bytes)
    record = world.machine.record()
    assert (before.ssh_port, {8888: 20024}, before.source) == (record.ssh_port, record.forwards, record.source)


def test_up_wakes_a_suspended_box(world: World) -> None:
    """As `resume` does. It has its manifest already, so nothing is sent."""
    up(world)
    stop.suspend(world.machine)
    world.did.clear()
    assert State.SUSPENDED is up(world)
    assert ["resume", "forget", "clock"] == world.did


def test_a_failed_resume_keeps_the_saved_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint has the command that discards it."""
    up(world)
    stop.suspend(world.machine)

    def fail(*_: Launch) -> None:
        raise GuestError("QEMU did not start tiny", code="boot-failed", fields={"name": "tiny"})

    with monkeypatch.context() as broken:
        broken.setattr(FakeDriver, "start", fail)
        with refused(GuestError, "boot-failed", name="tiny") as failed:
            resume(world.machine)
    assert "kimbox halt --force tiny" in str(failed.value.hint)
    assert State.SUSPENDED is state(world.machine)
    with refused(StateError, "wrong-state", verb="halt", name="tiny", state="suspended"):
        stop.halt(world.machine)
    assert State.SUSPENDED is state(world.machine)
    stop.halt(world.machine, force=True)
    assert ("drop", State.HALTED) == (world.did[-1], state(world.machine))


def test_a_paused_box_continues(world: World) -> None:
    """With `resume` and with `up`. No process is started. A clock that cannot be set is a warning."""
    up(world)
    world.status = "paused"
    world.did.clear()
    resume(world.machine)
    assert State.PAUSED is up(world)
    assert ["unpause", "clock"] * 2 == world.did


def test_the_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set over ssh. A failure is an error with its own code."""
    monkeypatch.undo()
    monkeypatch.setenv("KIMBOX_HOME", str(world.box.source.parent / "home"))
    monkeypatch.setattr(starting, "Guest", FakeGuest)
    machine = makemachine.make_machine()
    starting.set_clock(machine)
    monkeypatch.setattr(FakeGuest, "code", 1)
    with refused(GuestError, "clock-not-set", name="tiny") as failed:
        starting.set_clock(machine)
    assert failed.value.message.endswith("cannot be set: no")


def test_destroy(world: World) -> None:
    """Of a running, an incomplete, a damaged or a missing machine only the lock file is left."""
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


def test_destroy_keeps_the_lock_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for the lock must get the file that others lock, or two processes would work on one box."""
    makemachine.make_machine()
    monkeypatch.setattr("kimbox.machine.folder.LOCK_WAIT_S", 0.0)
    with world.machine.locked():
        pass
    with world.machine.lock_file.open() as waiting:
        stop.destroy(world.machine)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with refused(StateError, "busy", path=str(world.machine.lock_file)), world.machine.locked():
            pass


def test_prune_keeps_the_image_of_a_machine_that_up_creates(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the record of the machine refers to it. The ports are not locked meanwhile."""
    stored = images.folder("e" * 64)
    stored.mkdir(parents=True)
    (stored / images.FACTS).touch()
    removed: list[object] = []

    def create(driver: FakeDriver, folder: Path, box: Box, _: object) -> None:
        driver.script.disk_bytes = box.disk.size_bytes
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
    """The record is removed first, so that a folder without its disk is not a machine."""
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


def test_every_verb_takes_the_lock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs that change a machine fail if another process has its lock, and do nothing."""
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
