"""The manifest that a guest gets with a disk at its start: when there is one, what is on it, and how long it stays."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import attrs
import feignedworld
import makebox
import pytest
from feignedworld import World, up
from makemachine import event
from refused import refused

from kimbox.actions import prune, stop
from kimbox.actions.lifecycle import handover
from kimbox.drivers.base import Features
from kimbox.errors import GuestError
from kimbox.guest.delivery import Payload, parcels_of, write_disk
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import make_lock
from kimbox.machine.bootmode import Choice
from kimbox.machine.record import Ended, Known, Sealed
from kimbox.machine.state import State
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.spec.model import BootMode, Mode, Repository, Run, Step

world = feignedworld.world  # a fixture

MORE = Step("more", "true", Mode.SYSTEM, Run.ONCE, 60)


def taken(world: World) -> None:
    """From now on the guest takes the disk at its start, and is ready without the host."""
    world.boot = [*world.boot[:-1], event("ready", manifest=world.digest)]


def test_the_first_up_needs_no_ssh(world: World) -> None:
    """The guest is ready with the disk. The file is gone then; the record has the device, which a saved state needs."""
    taken(world)
    assert State.ABSENT is up(world)
    assert ["image", "disk", "start"] == world.did
    disk = world.launches[-1].delivery
    assert disk is not None
    assert world.digest == disk.digest
    assert world.machine.record().delivery_disk
    assert not world.machine.delivery.exists()


def test_a_box_that_has_the_manifest_gets_no_disk(world: World) -> None:
    """Another manifest, or one that could not be taken, comes with a disk."""
    taken(world)
    up(world)
    stop.halt(world.machine)
    up(world)
    assert (None, False) == (world.launches[-1].delivery, world.machine.record().delivery_disk)
    stop.halt(world.machine)
    world.box = attrs.evolve(world.box, provision=(MORE,))
    refusal = event("failed", manifest=world.digest, kind="receive", name="manifest", exit=1, reason="no space")
    world.boot = [*world.boot[:-1], refusal]
    world.after = [event("ready", manifest=world.digest)]
    up(world)
    assert "deliver" == world.did[-1]  # over ssh, after the refusal
    stop.halt(world.machine)
    world.machine.events_file.write_text("".join(world.boot))
    up(world)
    disk = world.launches[-1].delivery
    assert disk is not None
    assert world.digest == disk.digest


def test_starts_without_a_manifest(world: World) -> None:
    """`--no-provision`, maintain mode, and a driver without the disk."""
    up(world, provision=False)
    assert world.launches[-1].delivery is None
    stop.halt(world.machine)
    world.boot = [event("booting", mode="maintain"), event("ready", manifest="", mode="maintain")]
    up(world, boot=Choice(BootMode.MAINTAIN))
    assert world.launches[-1].delivery is None
    stop.halt(world.machine)
    world.driver.features = Features(own_disk=True)
    assert handover.prepare(world.machine, make_plan(Project(world.box)), Choice()) is None
    assert not world.machine.delivery.exists()


def test_a_resumed_box_keeps_the_device(world: World) -> None:
    """Without a file, and without a description. A new start removes the device."""
    taken(world)
    up(world)
    stop.suspend(world.machine)
    up(world)
    assert (True, None) == (world.machine.record().delivery_disk, world.launches[-1].delivery)
    stop.halt(world.machine)
    up(world)
    assert not world.machine.record().delivery_disk


def test_a_sealed_box_gets_each_manifest(world: World) -> None:
    """At each start, also the one that it has. If it goes back to the last good one, that is an error; it is sealed."""
    world.box = attrs.evolve(world.box, boot=BootMode.RESNAP)
    taken(world)
    up(world)
    stop.halt(world.machine)
    world.machine.data_key.write_text("k")
    known = Known(("0" * 64, world.digest), "1" * 64)
    world.machine.write_record(attrs.evolve(world.machine.record(), sealed=Sealed("worker", "a.org"), known=known))
    good = world.digest
    for box in (world.box, attrs.evolve(world.box, provision=(MORE,))):
        world.box = box
        world.boot[-1] = event("sealed", manifest=world.digest, role="worker", site="a.org")
        up(world)
        disk = world.launches[-1].delivery
        assert disk is not None
        assert world.digest == disk.digest
        # The guest may use what it gets now, and what was last ready.
        assert Known(tuple(dict.fromkeys((world.digest, good))), "1" * 64) == world.machine.record().known
        stop.halt(world.machine)
    fell_back = event("fallback", manifest=good, wanted=world.digest, reason="step more ended with status 1")
    sealed = event("sealed", manifest=good, wanted=world.digest, role="worker", site="a.org")
    world.boot[-1:] = [fell_back, sealed]
    with refused(GuestError, "manifest-failed", good_manifest=good, state="sealed") as error:
        up(world)
    assert "is sealed with the last good one" in error.value.message
    assert "step more ended with status 1" in error.value.message
    assert "kimbox reload tiny" in error.value.hint
    assert State.SEALED is up(world)


def test_what_a_start_that_failed_leaves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prune` finds the disk of a machine that ended before it took it. Halt removes it."""
    up(world)
    stop.halt(world.machine)
    world.machine.delivery.write_bytes(bytes(4096))
    assert [world.machine.delivery] == [item.path for item in prune.unused() if item.path == world.machine.delivery]
    world.machine.write_record(attrs.evolve(world.machine.record(), ended=Ended.SUSPENDED))
    assert world.machine.delivery not in [item.path for item in prune.unused()]
    world.machine.write_record(attrs.evolve(world.machine.record(), ended=Ended.HALTED))
    stop.halt(world.machine)
    assert not world.machine.delivery.exists()


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Payload:
    """The payload of a box with two repositories."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    repositories = []
    for name in ("one", "two"):
        makebox.make_repository(tmp_path / name, {"a": f"{name}\n"})
        repositories.append(Repository(name, f"file://{tmp_path}/{name}", False, "main", f"/opt/{name}"))
    box = makebox.make_box(tmp_path, repositories=tuple(repositories))
    lock = make_lock(box)
    manifest = render_manifest(box, lock)
    mirrors = {repository.name: Mirror.of(repository) for repository in box.repositories}
    return Payload(manifest, manifest_digest(manifest), tuple(parcels_of(box, lock)), mirrors)


def test_the_disk_has_what_the_guest_lacks(payload: Payload, tmp_path: Path) -> None:
    """Its file is private and ends with a sector. Nothing else is left beside it. Each start has another name."""
    target = tmp_path / "machine/delivery.raw"
    target.parent.mkdir()
    target.write_text("of an earlier start")
    (target.parent / "deliver-killed").mkdir()
    one = payload.parcels[0]
    for has, bundles in (
        (set(), {"one", "two"}),
        ({("one", one.commit)}, {"two"}),
        ({("two", one.commit)}, {"one", "two"}),
    ):
        disk = write_disk(payload, has, target)
        assert target.stat().st_size % 512 == 0
        assert 0o600 == stat.S_IMODE(target.stat().st_mode)
        assert [target.name] == [path.name for path in target.parent.iterdir()]
        with tarfile.open(target) as archive:
            names = archive.getnames()
        assert {f"bundles/{name}.bundle" for name in bundles} == {name for name in names if name.startswith("bundles/")}
        assert ("manifest", "end") == (names[0], names[-1])
    other = DeliveryDisk.of(disk.digest, target)
    assert other.start != disk.start
    digest, size, sha256, start = disk.credential().split(" ")
    assert (payload.digest, disk.size_bytes, disk.sha256, disk.start) == (digest, int(size), sha256, start)


def test_the_record_of_an_older_kimbox(world: World) -> None:
    """It has no delivery disk."""
    up(world, provision=False)
    file = world.machine.record_file
    value = json.loads(file.read_text())
    del value["delivery_disk"]
    file.write_text(json.dumps(value))
    assert not world.machine.record().delivery_disk
