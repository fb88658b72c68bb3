"""Folders of the host while a machine starts, is saved and resumes. The driver, the image store and ssh are doubles."""

from __future__ import annotations

from pathlib import Path

import attrs
import fakedriver
import feignedworld
import pytest
from feignedworld import World, up
from refused import refused

from kimbox.actions import mounts, snapshot, stop
from kimbox.actions.resume import resume
from kimbox.errors import GuestError, StateError
from kimbox.log import log
from kimbox.machine.mounts import check_folders, real_folder
from kimbox.machine.record import Purpose, Sealed
from kimbox.spec.model import Mount

world = feignedworld.world  # a fixture


@pytest.fixture
def folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the host that the box shares. What the guest is asked for is recorded with the driver's calls."""
    folder = tmp_path / "shared"
    folder.mkdir()
    world.box = attrs.evolve(world.box, mounts=(Mount(folder, "/work", writable=True),))
    monkeypatch.setattr(mounts, "_run", lambda machine, verb, hint: world.did.append(f"guest {verb}"))
    monkeypatch.setattr(snapshot, "set_clock", lambda _: None)
    return folder


def test_a_box_starts_only_with_its_folder(world: World, folder: Path) -> None:
    """Nothing is created and nothing resumes without it. The next start uses the folders of the spec."""
    folder.rmdir()
    with refused(StateError, "mount-folder-missing", name="tiny", path=str(folder)):
        up(world)
    named = Mount(folder / "$(id)", "/work", writable=True)  # by the spec, and the hint is a command
    with refused(StateError, "mount-folder-missing") as caught:
        check_folders("tiny", (named,))
    assert f"`mkdir -p '{named.location}'`" in (caught.value.hint or "")
    assert not world.machine.exists
    folder.mkdir()
    up(world)
    assert world.box.mounts == world.launches[-1].record.mounts == world.machine.record().mounts
    stop.suspend(world.machine)
    folder.rmdir()
    with refused(StateError, "mount-folder-missing", name="tiny", path=str(folder)):
        resume(world.machine)


def test_memory_is_saved_without_the_devices(world: World, folder: Path) -> None:
    """They are away while QEMU saves, and back afterwards and after a resume."""
    up(world)
    world.did.clear()
    snapshot.save(world.machine, "one")
    assert ["guest stop", "unplug", "keep one", "plug", "guest start"] == world.did
    world.did.clear()
    stop.suspend(world.machine)
    assert ["guest stop", "unplug", "save", "kill"] == world.did
    world.did.clear()
    resume(world.machine)
    assert ["resume", "forget", "plug", "guest start"] == [call for call in world.did if call != "clock"]
    world.did.clear()
    snapshot.restore(world.machine, "one")
    assert ["kill", "resume", "plug", "guest start"] == world.did
    stop.halt(world.machine)
    world.did.clear()
    snapshot.save(world.machine, "off")
    assert ["keep off"] == world.did


def test_a_failed_save_brings_them_back(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box runs on with its folders. A folder that does not come back is a warning."""
    up(world)

    def fail(driver: fakedriver.FakeDriver, name: str) -> None:
        raise GuestError("no space", code="qemu-failed")

    monkeypatch.setattr(fakedriver.FakeDriver, "save_snapshot", fail)
    world.did.clear()
    with refused(GuestError, "qemu-failed"):
        snapshot.save(world.machine, "one")
    assert ["guest stop", "unplug", "plug", "guest start"] == world.did
    warned: list[str] = []
    monkeypatch.setattr(log, "warn", warned.append)

    def lose(driver: fakedriver.FakeDriver, record: object) -> None:
        raise GuestError("no virtiofsd", code="mount-failed")

    monkeypatch.setattr(fakedriver.FakeDriver, "plug_mounts", lose)
    mounts.renew(world.machine)
    assert "kimbox reload tiny" in warned[0]


def test_only_the_machine_of_the_box_has_them(world: World, folder: Path) -> None:
    """A clone and a job have none. A sealed box and another driver are refused."""
    up(world)
    record = world.machine.record()
    assert () == mounts.of_start(world.machine, record, world.box, is_job=True)
    clone = attrs.evolve(record, purpose=Purpose.CLONE)
    assert () == mounts.of_start(world.machine, clone, world.box, is_job=False)
    sealed = attrs.evolve(record, sealed=Sealed("worker", "example.org"))
    with refused(StateError, "box-sealed", name="tiny", verb="start"):
        mounts.of_start(world.machine, sealed, world.box, is_job=False)
    world.driver.features = attrs.evolve(fakedriver.ALL_FEATURES, mounts=False)
    with refused(StateError, "unsupported-by-driver", name="tiny"):
        mounts.of_start(world.machine, record, world.box, is_job=False)


def test_a_folder_outside_of_that_of_the_spec_is_a_warning(
    world: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, also if a link in the folder of the spec leads there: somebody else may have written it."""
    warned: list[str] = []
    monkeypatch.setattr(log, "warn", warned.append)
    beside = world.box.source.parent
    (beside / "own").mkdir(parents=True)
    (beside / "link").symlink_to(tmp_path.parent, target_is_directory=True)
    own = Mount(beside / "own", "/own", writable=True)
    world.box = attrs.evolve(world.box, mounts=(own,))
    up(world)
    assert [] == warned
    stop.halt(world.machine)
    world.box = attrs.evolve(world.box, mounts=(own, Mount(beside / "link", "/home/vagrant/link", writable=False)))
    up(world)
    assert [f"tiny can read the folder {tmp_path.parent} of this host, which is not below that of its spec"] == [
        text for text in warned if "this host" in text
    ]
    stop.halt(world.machine)
    warned.clear()
    up(world)
    assert [] == [text for text in warned if "this host" in text]


def test_a_guest_does_not_choose_a_folder(world: World, folder: Path, tmp_path: Path) -> None:
    """It can write a spec in a folder that it shares, and replace a folder in it by a link. Neither leads out of it."""
    shared = Mount(folder, "/work", writable=True)
    spec = folder / "kimbox.yaml"
    world.box = attrs.evolve(world.box, source=spec, layers=(spec,))
    up(world)
    stop.halt(world.machine)
    private = tmp_path / "private"
    private.mkdir()
    (folder / "data").symlink_to(private, target_is_directory=True)
    record, link = world.machine.record(), Mount(folder / "data", "/data", writable=True)
    for mount in (Mount(private, "/private", writable=False), link):
        box = attrs.evolve(world.box, mounts=(mount,))
        with refused(StateError, "mount-unsafe", name="tiny", path=str(private), changeable=str(folder)):
            mounts.of_start(world.machine, record, box, is_job=False)
    with refused(StateError, "mount-unsafe"):
        real_folder("other", link)  # of another box
    known = attrs.evolve(world.box, mounts=(Mount(private, "/private", writable=False),))
    same = attrs.evolve(record, mounts=(*record.mounts, *known.mounts))
    assert known.mounts == mounts.of_start(world.machine, same, known, is_job=False)
    by_user = attrs.evolve(known, settings=("mounts=[]",))
    assert known.mounts == mounts.of_start(world.machine, record, by_user, is_job=False)
    # Nor after its machine was removed. What the spec had before, it gets again.
    stop.destroy(world.machine)
    fresh = attrs.evolve(record, mounts=())
    for mount in (Mount(tmp_path, "/all", writable=False), attrs.evolve(link, location=folder / "other")):
        (folder / "other").unlink(missing_ok=True)
        (folder / "other").symlink_to(tmp_path)
        with refused(StateError, "mount-unsafe", name="tiny", path=str(tmp_path), changeable=str(folder)):
            mounts.of_start(world.machine, fresh, attrs.evolve(world.box, mounts=(mount,)), is_job=False)
    assert known.mounts == mounts.of_start(world.machine, fresh, known, is_job=False)
    (folder / "data").unlink()
    (folder / "data").mkdir()
    for mount in (link, shared):
        assert mount.location == real_folder("other", mount)
