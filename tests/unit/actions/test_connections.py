"""What a start connects: networks, a screen and automatic forwards, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import feignedworld
import makemachine
import pytest
from feignedworld import World, up
from refused import refused

from kimbox.actions import vagrant_export
from kimbox.actions.lifecycle.start import start
from kimbox.drivers.base import Features
from kimbox.errors import StateError, UsageError
from kimbox.machine import forwarding
from kimbox.machine.record import Purpose, Sealed
from kimbox.project.project import Project
from kimbox.spec.model import Display, Network

world = feignedworld.world  # a fixture

NETWORK = Network("lan", "10.57.0.0/24", (("tiny", "10.57.0.1"), ("other", "10.57.0.2")))

#: Key of a box -> its value, and the value of a machine that has none.
ASKED: dict[str, tuple[Any, Any]] = {
    "networks": ((NETWORK,), ()),
    "display": (Display.VNC, None),
    "auto_forwards": (True, False),
}


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The machines for which the process of automatic forwards is started."""
    started: list[str] = []
    monkeypatch.setattr(forwarding, "detach", lambda argv, **_: started.append(argv[-1]) or (lambda: 0))
    return started


def all_asked(world: World) -> None:
    """The spec asks for everything, and the driver can do it."""
    world.driver.features = attrs.evolve(world.driver.features, networks=True, display=True, own_process=True)
    world.box = attrs.evolve(world.box, **{key: value for key, (value, _) in ASKED.items()})


def test_the_record_has_what_the_spec_asks_for(world: World, processes: list[str]) -> None:
    """A later start without it removes it."""
    all_asked(world)
    up(world)
    record = world.machine.record()
    assert ((NETWORK,), Display.VNC, True) == (record.networks, record.display, record.auto_forwards)
    assert ["tiny"] == processes
    world.end_process()
    world.box = attrs.evolve(world.box, **{key: none for key, (_, none) in ASKED.items()})
    up(world)
    record = world.machine.record()
    assert ((), None, False) == (record.networks, record.display, record.auto_forwards)


@pytest.mark.parametrize("key", ASKED)
def test_a_driver_without_it(world: World, key: str) -> None:
    """The start is refused."""
    world.box = attrs.evolve(world.box, **{key: ASKED[key][0]})
    world.driver.features = Features(own_disk=True, delivery_disk=True)
    with refused(StateError, "unsupported-by-driver"):
        up(world)


def test_a_clone_has_no_address(world: World) -> None:
    """The address is that of the box."""
    all_asked(world)
    up(world)
    world.end_process()
    world.machine.write_record(attrs.evolve(world.machine.record(), purpose=Purpose.CLONE))
    start(world.machine, world.box)
    record = world.machine.record()
    assert ((), Display.VNC) == (record.networks, record.display)


@pytest.mark.parametrize("event", ["sshd", "stored"])
def test_a_clone_that_crashed_before_its_key_was_on_its_disk(world: World, event: str) -> None:
    """Its next boot makes another key, which is not taken for that of another box."""
    up(world)
    world.end_process()
    pinned = world.machine.known_hosts.read_text()
    makemachine.tell(world.machine, makemachine.event(event))
    world.machine.write_record(attrs.evolve(world.machine.record(), purpose=Purpose.CLONE, woken=True))
    start(world.machine, world.box)
    assert not world.machine.record().woken
    assert (event == "stored") is world.machine.known_hosts.exists()
    world.end_process()
    world.machine.known_hosts.write_text(pinned)
    start(world.machine, world.box)
    assert pinned == world.machine.known_hosts.read_text()


def test_a_sealed_box_has_no_screen_and_no_automatic_forwards(world: World, processes: list[str]) -> None:
    """It has its networks."""
    all_asked(world)
    up(world)
    world.end_process()
    processes.clear()
    world.machine.data_key.write_text("k\n")
    world.machine.write_record(attrs.evolve(world.machine.record(), sealed=Sealed("worker", "example.org")))
    start(world.machine, world.box)
    record = world.machine.record()
    assert ((NETWORK,), None) == (record.networks, record.display)
    forwarding.ensure(world.machine, record)
    assert [] == processes


@pytest.mark.parametrize("key", ASKED)
def test_plain_vagrant_has_none_of_them(world: World, tmp_path: Path, key: str) -> None:
    """`render` refuses to write a folder that would lack it."""
    world.box = attrs.evolve(world.box, **{key: ASKED[key][0]})
    with refused(UsageError, "unsupported-by-driver", name="tiny"):
        vagrant_export.render([vagrant_export.ExportRequest(Project(world.box))], tmp_path / "vagrant")
