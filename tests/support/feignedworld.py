"""QEMU, the image store and ssh as stand-ins that write down what they did, for tests of a machine's life."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import makebox
import makemachine
import pytest
from makemachine import event, tell

from kimbox.actions import life, watch
from kimbox.actions.life import Up
from kimbox.drivers import accelerator
from kimbox.drivers.accelerator import KVM_WORKS
from kimbox.drivers.qemu import process
from kimbox.errors import KimboxError
from kimbox.guest.ssh import Answer
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.lock.lockfile import Lock
from kimbox.log import log
from kimbox.machine import grubenv
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.spec.model import BootMode


class World:
    """Everything outside of machine/, feigned. `did` is what was done, in order."""

    def __init__(self, folder: Path) -> None:
        self.did: list[str] = []
        self.box = makebox.make_box(folder)
        self.machine = Machine("tiny")
        self.lock = Lock("d" * 64, "e" * 64, {})
        self.status = "running"
        self.on_power: bool = True
        self.launches: list[process.Launch] = []
        #: Boot modes that were set in the disk, each with the one for once; or why they cannot be.
        self.modes: list[tuple[str, str | None]] = []
        self.no_modes: KimboxError | None = None
        self._held: IO[str] | None = None
        #: What the guest tells at a boot, and when it got its manifest.
        self.boot = [event("booting", mode="keep"), event("hostkey", key=makemachine.HOST_KEY), event("sshd")]
        self.boot += [event("waiting")]
        self.after = [event("provisioning", manifest=self.digest), event("ready", manifest=self.digest)]

    @property
    def digest(self) -> str:
        return manifest_digest(render_manifest(self.box, self.lock, "e" * 64))

    def run_process(self) -> None:
        self._held = self.machine.run_lock.open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def end_process(self) -> None:
        if self._held:
            self._held.close()
        self._held = None

    def start(self, launch: process.Launch) -> None:
        self.did.append("resume" if launch.resume else "start")
        self.launches.append(launch)
        self.run_process()
        if not launch.resume:
            self.machine.events_file.write_text("".join(self.boot))

    def choose(self, _: Machine, saved: BootMode, once: BootMode | None = None) -> bool:
        if self.no_modes:
            raise self.no_modes
        assert self._held is None, "the disk of a box that runs"
        self.modes.append((str(saved), once and str(once)))
        return True

    def deliver(self, *_: object) -> str:
        self.did.append("deliver")
        tell(self.machine, *self.after)
        return self.digest

    def power_off(self, _: Machine, timeout_s: float) -> bool:
        self.did.append("power button")
        if self.on_power:
            self.end_process()
        return self.on_power

    def kill(self, _: Machine) -> None:
        self.did.append("kill")
        self.end_process()

    def note(self, what: str) -> Any:
        return lambda *_, **__: self.did.append(what)


class FakeGuest:
    """An ssh connection that answers everything with success."""

    code = 0

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, command: str, *, timeout_s: float) -> Answer:
        assert "date" in command
        return Answer(self.code, "", "no")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(log, "quiet", True)
    world = World(tmp_path)
    image = Image("e" * 64, tmp_path / "image.raw", "raw", {"virtual_bytes": 1 << 20})

    image.disk.touch()

    def ensure(*_: object, **__: object) -> Image:
        world.did.append("image")
        return image

    def create_disk(disk: Path, *_: object) -> None:
        world.did.append("disk")
        disk.touch()

    monkeypatch.setattr(images, "ensure", ensure)
    monkeypatch.setattr(images, "key_of", lambda *_: image.key)
    monkeypatch.setattr(life, "lock_for", lambda *_, **__: (world.lock, {}))
    monkeypatch.setattr(grubenv, "choose", world.choose)
    monkeypatch.setattr(accelerator, "find", lambda: KVM_WORKS)
    monkeypatch.setattr(life, "deliver", world.deliver)
    monkeypatch.setattr(life, "Guest", FakeGuest)
    monkeypatch.setattr(life, "set_clock", world.note("clock"))
    for name, fake in {
        "create_disk": create_disk,
        "start": world.start,
        "status": lambda _: world.status,
        "power_off": world.power_off,
        "kill": world.kill,
        "suspend": world.note("save"),
        "forget_suspended": world.note("forget"),
        "drop_suspended": world.note("drop"),
        "unpause": world.note("unpause"),
        "LOOK_S": 0.001,
    }.items():
        monkeypatch.setattr(process, name, fake)
    monkeypatch.setattr(watch, "LAST_WORDS_S", 0.05)
    monkeypatch.setattr(watch, "ENDS_S", 0.05)
    yield world
    world.end_process()


def up(world: World, **changes: Any) -> State:
    return life.up(attrs.evolve(Up(world.box, timeout_s=5), **changes))
