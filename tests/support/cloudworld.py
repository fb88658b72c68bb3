"""A machine of the driver `openstack` in a cloud of dictionaries; its guest answers at once."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import makemachine
import pytest
from fakecloud import FakeCloud

from kimbox.drivers import guestboot
from kimbox.drivers.base import Launch
from kimbox.drivers.fetch import EventCopies
from kimbox.drivers.openstack import instance as instances
from kimbox.drivers.openstack import publishing
from kimbox.drivers.openstack.driver import OpenStack
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record
from kimbox.spec.model import Box, Instance

GIB = 1 << 30
KEY = "e" * 64


@attrs.define
class World:
    """A cloud, a box, and its machine, which is new. The guest answers as soon as it has an address."""

    cloud: FakeCloud
    box: Box
    image: Image
    machine: Machine

    @property
    def driver(self) -> OpenStack:
        """The driver in a new process."""
        return OpenStack(self.machine, self.cloud)  # type: ignore[arg-type]

    def start(self, **changes: object) -> Record:
        """Does what `up` does: publishes and starts. Returns the record."""
        self.driver.prepare(self.box, self.image)
        launch = Launch(self.machine.record(), self.box, 1, GIB, **changes)  # type: ignore[arg-type]
        record = attrs.evolve(self.driver.start(launch), ended=None)
        self.machine.write_record(record)
        return record

    def ended(self, ended: Ended) -> Record:
        """The record with another end of the last run."""
        self.machine.write_record(attrs.evolve(self.machine.record(), ended=ended))
        return self.machine.record()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(instances, "POLL_S", 0.0)
    monkeypatch.setattr(instances, "ANSWER_S", 0.0)
    monkeypatch.setattr(guestboot, "needs_reboot", lambda *_, **__: False)
    monkeypatch.setattr(EventCopies, "fetch", lambda *_: True)
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"a disk" * 1000)
    monkeypatch.setattr(publishing, "convert", lambda source, _, target, __: target.write_bytes(source.read_bytes()))
    image = Image(KEY, disk, "qcow2", {"virtual_bytes": 5 * GIB})
    monkeypatch.setattr(images, "find", lambda key: image if key == KEY else None)
    box = attrs.evolve(makebox.make_box(tmp_path), openstack=Instance("small", "private"))
    machine = makemachine.make_machine(driver="openstack", image=KEY, ended=Ended.NEW)
    made = World(FakeCloud(), box, image, machine)
    made.driver.create(machine.folder, box, image)
    return made


def with_address(world: World) -> None:
    """The box asks for a floating address."""
    world.box = attrs.evolve(world.box, openstack=Instance("small", "private", "public"))


def fail_at(cloud: FakeCloud, method: str, error: BaseException) -> None:
    """The method fails the next time, before it does anything."""

    def before(name: str) -> None:
        if name == method:
            cloud.before = lambda _: None
            raise error

    cloud.before = before
