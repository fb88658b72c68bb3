"""Doubles of the driver, the image store and ssh that record their calls, for tests of the actions of a machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakedriver
import makebox
import pytest
from fakedriver import Script
from makemachine import event, tell

from kimbox.actions import up as starting
from kimbox.actions import watch
from kimbox.actions.lifecycle import readiness, start
from kimbox.actions.up import UpRequest
from kimbox.errors import KimboxError
from kimbox.guest import shared
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Answer
from kimbox.image import obtain
from kimbox.image.store import lease
from kimbox.image.store.images import Image
from kimbox.lock.lockfile import Lock
from kimbox.machine import bootmode
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.project import plan
from kimbox.project.pins import Locked
from kimbox.project.project import Project
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.settings import settings
from kimbox.spec.model import BootMode


class World(Script):
    """Doubles for everything that the actions call. `did` has the names of the calls, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.box = makebox.make_box(folder)
        self.machine = Machine("tiny")
        self.driver = fakedriver.install(monkeypatch, self)(self.machine)
        self.lock = Lock("d" * 64, "e" * 64, {})
        #: Boot modes that were set in the disk, each with the mode for the next boot only.
        self.modes: list[tuple[str, str | None]] = []
        #: Each connection that was opened in advance: the calls before it.
        self.connections: list[list[str]] = []
        #: If set, boot modes cannot be set in the disk, with this error.
        self.no_modes: KimboxError | None = None
        #: The events that the guest sends after it has received its manifest.
        self.after = [event("provisioning", manifest=self.digest), event("ready", manifest=self.digest)]

    @property
    def digest(self) -> str:
        return manifest_digest(render_manifest(self.box, self.lock, "e" * 64))

    def end_process(self) -> None:
        self.driver.end_process()

    def choose(self, _: Machine, saved: BootMode, once: BootMode | None = None) -> bool:
        if self.no_modes:
            raise self.no_modes
        self.modes.append((str(saved), once and str(once)))
        return True

    def deliver(self, *_: object) -> str:
        self.did.append("deliver")
        tell(self.machine, *self.after)
        return self.digest

    def connect(self, _: Endpoint) -> None:
        self.connections.append([*self.did])

    def note(self, what: str) -> Any:
        return lambda *_, **__: self.did.append(what)


class FakeGuest:
    """An ssh connection on which every command succeeds."""

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
    monkeypatch.setattr(settings, "quiet", True)
    world = World(tmp_path, monkeypatch)
    image = Image("e" * 64, tmp_path / "image.raw", "raw", {"virtual_bytes": 1 << 20})

    image.disk.touch()

    @contextlib.contextmanager
    def leased(*_: object, **__: object) -> Iterator[Image]:
        with lease.shared(image.key):
            world.did.append("image")
            yield image

    monkeypatch.setattr(obtain, "leased", leased)
    monkeypatch.setattr(obtain, "key_of", lambda *_: image.key)
    monkeypatch.setattr(bootmode, "set_entries", world.choose)
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.001)
    monkeypatch.setattr(plan, "lock_for", lambda _: Locked(world.lock, {}, None, image.key))
    monkeypatch.setattr(readiness, "deliver", world.deliver)
    monkeypatch.setattr(readiness, "Guest", FakeGuest)
    monkeypatch.setattr(shared, "open_early", world.connect)
    monkeypatch.setattr(start, "Guest", FakeGuest)
    monkeypatch.setattr(start, "set_clock", world.note("clock"))
    monkeypatch.setattr(watch, "FATAL_LINE_GRACE_S", 0.05)
    monkeypatch.setattr(watch, "POWER_OFF_TIMEOUT_S", 0.05)
    yield world
    world.end_process()


def up(world: World, *, shipped: str | None = None, **changes: Any) -> State:
    return starting.up(UpRequest(**{"project": Project(world.box, shipped), "timeout_s": 5} | changes))
