"""`up` of an image that kimbox did not build. Driver, image store and ssh are doubles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import fakedriver
import feignedworld
import pytest
from feignedworld import World, up
from makemachine import HOST_KEY, OTHER_HOST_KEY, event, tell
from refused import refused

from kimbox.actions import stop
from kimbox.actions.lifecycle import adoption
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.guest.cloudinit import BEGIN, END
from kimbox.guest.ssh import Answer
from kimbox.machine import foreign, keys
from kimbox.machine.record import GuestKind
from kimbox.machine.state import State
from kimbox.spec.model import BootMode, RemoteImage

world = feignedworld.world  # a fixture

ADOPTED = [event("booting", mode="keep", guest="cloud-init"), event("hostkey", key=HOST_KEY), event("sshd")]


@attrs.define
class Cloud:
    """The guest: what it writes to its console, and how it answers over ssh."""

    world: World
    host_key: str = HOST_KEY
    #: Errors of the next logins.
    refusals: list[KimboxError] = attrs.field(factory=list)
    #: Exit status of the installation.
    install_code: int = 0
    instances: list[str] = attrs.field(factory=list)

    def boot(self) -> None:
        """Writes the host key to the console, as cloud-init does."""
        machine = self.world.machine
        machine.serial_log.write_bytes(BEGIN + f"\r\n{self.host_key} root@a\r\n".encode() + END)
        self.instances.append(str(machine.record().seed))

    def login(self, *_: object, **__: object) -> _Guest:
        if self.refusals:
            raise self.refusals.pop(0)
        return _Guest(self)


class _Guest:
    def __init__(self, cloud: Cloud) -> None:
        self.cloud, machine = cloud, cloud.world.machine
        self.endpoint = machine.endpoint(machine.record())

    def __enter__(self) -> _Guest:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, command: str, *, timeout_s: float, stdin: Path | None = None) -> Answer:
        world = self.cloud.world
        if stdin is None:
            world.did.append(command.split()[0])
            return Answer(0, "", "")
        world.did.append("install with git" if command.endswith("adopt git'") else "install")
        assert stdin.stat().st_size > 50000
        if self.cloud.install_code == 0:
            tell(world.machine, *ADOPTED, event("waiting"))
        return Answer(self.cloud.install_code, "", "adopt: no systemd\n")


@pytest.fixture
def cloud(world: World, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A box of a cloud image, which sends no event by itself."""
    world.box = attrs.evolve(world.box, image=RemoteImage("/nowhere", f"sha256:{'e' * 64}"))
    world.driver.features = attrs.evolve(fakedriver.ALL_FEATURES, seed=True)
    world.boot = []
    cloud = Cloud(world)
    start = world.driver.start

    def starting(launch: Any) -> Any:
        record = start(launch)
        world.machine.write_record(record)
        if not launch.resume:
            cloud.boot()
        return record

    monkeypatch.setattr(type(world.driver), "start", lambda _, launch: starting(launch))
    monkeypatch.setattr(foreign, "instance", lambda box, disk: "kimbox-first")
    monkeypatch.setattr(adoption, "Guest", cloud.login)
    monkeypatch.setattr(adoption, "PROBE_INTERVAL_S", 0.001)
    return cloud


def test_the_programs_are_installed_when_the_key_is_accepted(cloud: Cloud) -> None:
    """The manifest comes then, as to each other guest. The kind of the guest is in the record; later it reports."""
    world = cloud.world
    cloud.refusals = [GuestError("no", code="guest-unreachable"), GuestError("no", code="login-refused")]
    assert State.ABSENT is up(world)
    assert ["image", "disk", "start", "exit", "cloud-init", "install", "deliver"] == world.did
    record = world.machine.record()
    assert (GuestKind.CLOUD_INIT, HOST_KEY) == (record.guest, keys.host_key(world.machine))
    stop.halt(world.machine)
    world.did.clear()
    world.boot = [*ADOPTED, *world.after]
    assert State.HALTED is up(world)
    assert "install" not in world.did
    assert record.seed == world.machine.record().seed  # another one would make cloud-init begin again


def test_a_guest_that_reports_by_itself_needs_nothing(cloud: Cloud) -> None:
    """Whatever its image is."""
    cloud.world.boot = [event("booting", mode="keep"), *fakedriver.BOOT_EVENTS[1:]]
    up(cloud.world)
    assert "cloud-init" not in cloud.world.did
    assert GuestKind.KIMBOX is cloud.world.machine.record().guest


def test_each_boot_before_that_is_a_new_instance_with_new_host_keys(cloud: Cloud) -> None:
    """The installation may have failed, or kimbox was killed before it."""
    world, cloud.install_code = cloud.world, 1
    with refused(GuestError, "install-failed", name="tiny", exit_status="1") as caught:
        up(world)
    assert "no systemd" in str(caught.value)
    assert world.machine.record().guest is None
    with refused(GuestError, "install-failed"):  # it runs, and has the same host key
        up(world)
    stop.halt(world.machine)
    cloud.host_key, cloud.install_code = OTHER_HOST_KEY, 0
    world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.ADOPTED", [ADOPTED[0], event("hostkey", key=OTHER_HOST_KEY), ADOPTED[2]])
        up(world)
    assert 2 == len(set(cloud.instances))
    assert OTHER_HOST_KEY == keys.host_key(world.machine)


def test_an_error_that_does_not_go_away_ends_the_wait(cloud: Cloud) -> None:
    """Another host key than that of the console is such an error."""
    cloud.refusals = [GuestError("another", code="host-key-mismatch")]
    with refused(GuestError, "host-key-mismatch"):
        up(cloud.world)


def test_a_boot_mode_is_refused_before_anything_is_created(cloud: Cloud) -> None:
    """The machine has no root below a snapshot."""
    cloud.world.box = attrs.evolve(cloud.world.box, boot=BootMode.RESNAP)
    with refused(StateError, "unsupported-by-image", what="boot resnap"):
        up(cloud.world)
    assert not cloud.world.machine.exists
