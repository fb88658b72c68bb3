"""The start of a clone with a driver that runs no guest: every failure is reported, and leaves no machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import makemachine
import pytest
from refused import refused

from kimbox import paths
from kimbox.actions.clones import clone as cloning
from kimbox.drivers import registry
from kimbox.drivers.base import Launch
from kimbox.errors import GuestError, StateError
from kimbox.machine import delivered_locks, forwarding
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose, Record, Sealed
from kimbox.machine.templates import Template
from kimbox.project.project import Project
from kimbox.spec.load import load_box

TEMPLATE = Template(
    "a" * 64, "minimal", "b" * 64, "c" * 64, 1, 1 << 30, None, ({"event": "booting", "boot": "x", "mode": "keep"},)
)


class World:
    """A driver whose guest sends the events `answers`, and its calls."""

    name = "qemu"

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = [{"event": "awake"}]
        self.is_alive = True
        self.destroyed: list[str] = []
        self.line = b""
        self.machine = Machine("one")

    def wake(
        self, launch: Launch, template: Path, identity: Callable[[], bytes], wait_until_awake: Callable[[], None]
    ) -> Record:
        self.line = identity()
        assert not self.machine.exists  # until it has its identity, it is no machine
        boot = json.loads(self.machine.events_file.read_text().splitlines()[0])["boot"]
        with self.machine.events_file.open("a") as file:
            for answer in self.answers:
                file.write(json.dumps({"boot": boot, "uptime_s": 2} | answer) + "\n")
        wait_until_awake()
        return attrs.evolve(launch.record, ssh_port=20022)

    def listen(self) -> bool:
        return self.is_alive

    def destroy(self) -> None:
        self.destroyed.append(self.machine.name)
        for path in sorted(self.machine.folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        if self.machine.folder.exists():
            self.machine.folder.rmdir()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    world = World()
    monkeypatch.setattr(registry, "with_templates", lambda machine: world)
    monkeypatch.setattr(delivered_locks.Delivered, "write", lambda self, folder: None)
    monkeypatch.setattr(cloning, "WAKE_TIMEOUT_S", 0.0)
    return world


@pytest.fixture
def plan() -> Any:
    delivered = delivered_locks.Delivered("c" * 64, None)  # type: ignore[arg-type]
    box = load_box(paths.boxes_dir() / "minimal.yaml")
    lock = attrs.make_class("Lock", ["digest"])("e" * 64)
    fields = {"project": Project(box, "minimal"), "box": box, "lock": lock, "digest": "c" * 64, "delivered": delivered}
    fields["image_key"] = TEMPLATE.image
    return attrs.make_class("Plan", list(fields))(**fields)


def test_a_clone_has_a_record_when_it_has_its_identity(world: World, plan: Any) -> None:
    started = cloning.start(world.machine, plan, TEMPLATE)
    record = started.machine.record()
    assert (Purpose.CLONE, "minimal", "a" * 64, True) == (record.purpose, record.box, record.template, record.woken)
    assert (20022, "b" * 64, None) == (record.ssh_port, record.image, record.ended)
    sent = dict(word.split("=") for word in world.line.decode().split())
    assert record.uuid == bytes.fromhex(sent["uuid"]).decode()
    boots = {event.boot for event in world.machine.boot_events()}
    assert {bytes.fromhex(sent["boot_id"]).decode()} == boots
    private = bytes.fromhex(sent["host_key"])
    assert private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    texts = [path.read_bytes() for path in world.machine.folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if private in text]
    assert bytes.fromhex(sent["host_public"]).endswith(b"\n")
    assert bytes.fromhex(sent["host_public"]).split()[1] in world.machine.known_hosts.read_bytes()


@pytest.mark.parametrize(
    ("answers", "is_alive", "step"),
    [
        ([{"event": "failed", "kind": "wake", "name": "clock", "reason": "no"}], True, "clock"),
        ([{"event": "hostkey", "key": "x"}], False, ""),
        ([], True, ""),
    ],
    ids=["a step fails", "its process ends", "it does not answer"],
)
def test_a_clone_that_fails_is_reported_and_removed(
    world: World, plan: Any, answers: list[dict[str, Any]], is_alive: bool, step: str
) -> None:
    world.answers, world.is_alive = answers, is_alive
    with refused(GuestError, "clone-failed", name="one", step=step):
        cloning.start(world.machine, plan, TEMPLATE)
    assert ["one"] == world.destroyed
    assert not world.machine.folder.exists()


def test_what_a_killed_clone_left_is_removed_first(world: World, plan: Any) -> None:
    world.machine.folder.mkdir(parents=True)
    (world.machine.folder / "qemu.log").touch()
    cloning.start(world.machine, plan, TEMPLATE)
    assert ["one"] == world.destroyed
    assert world.machine.exists


def test_a_name_that_is_taken(world: World, plan: Any) -> None:
    makemachine.make_machine("one")
    with refused(StateError, "name-taken", name="one"):
        cloning.start(world.machine, plan, TEMPLATE)
    assert [] == world.destroyed
    with refused(StateError, "name-taken", name="one"):
        cloning.clone(plan.project, ["one"], timeout_s=1)


def test_a_sealed_box_has_no_clone(world: World, plan: Any) -> None:
    makemachine.make_machine("minimal", sealed=Sealed("worker", "here"))
    with refused(StateError, "box-sealed", name="minimal", verb="clone", role="worker"):
        cloning.clone(plan.project, ["one"], timeout_s=1)
    assert os.listdir(paths.machines_dir()) == ["minimal"]  # noqa: PTH208


def test_clones_choose_the_ports_of_their_forwards(plan: Any) -> None:
    from kimbox.spec.model import Forward

    box = attrs.evolve(plan.box, forwards=(Forward(8888, 8888), Forward(80, None)))
    assert (Forward(8888, None), Forward(80, None)) == cloning.own_forwards(box).forwards


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_clone_forwards_the_ports_on_which_its_programs_listen(
    world: World, plan: Any, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    served: list[bool] = []
    monkeypatch.setattr(forwarding, "ensure", lambda machine, record: served.append(record.auto_forwards))
    plan = attrs.evolve(plan, box=attrs.evolve(plan.box, auto_forwards=is_asked))
    cloning.start(world.machine, plan, TEMPLATE)
    assert [is_asked] == served
