"""The connection that `up` opens for the first command. Driver, image store and ssh are doubles."""

from __future__ import annotations

import attrs
import feignedworld
import pytest
from feignedworld import World, up
from makemachine import event

from kimbox.actions import stop
from kimbox.actions.lifecycle import readiness
from kimbox.actions.lifecycle.readiness import bring_to_ready
from kimbox.guest import shared
from kimbox.machine.record import Sealed
from kimbox.machine.state import State
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.spec.model import BootMode, Variable

world = feignedworld.world  # a fixture


def test_the_first_command_finds_a_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened when sshd runs, and again after a provisioning, which may change groups. `up` does not need it."""
    started = ["image", "disk", "start"]
    up(world)
    assert [started, [*started, "deliver"]] == world.connections
    stop.halt(world.machine)
    world.boot = [*world.boot[:-1], *world.after]

    def fail(_: object) -> None:
        world.did.append("no connection")
        raise OSError(12, "no memory")

    monkeypatch.setattr(shared, "open_early", fail)
    assert State.HALTED is up(world)
    assert "no connection" == world.did[-1]


def test_secret_values_over_ssh(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come before the manifest, at each boot: the guest fails without them, and keeps them in memory."""
    token = world.box.source.parent / "token"
    token.write_text("s3cr3t\n")
    token.chmod(0o600)
    world.box = attrs.evolve(world.box, variables=(Variable("TOKEN", None, token),))
    world.driver.features = attrs.evolve(world.driver.features, secrets=False, secrets_by_ssh=True)
    given: list[bytes] = []

    def give(_: object, text: bytes) -> None:
        world.did.append("secrets")
        given.append(text)

    monkeypatch.setattr(readiness, "give_secrets", give)
    world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
    up(world)
    assert ["secrets", "deliver"] == world.did[-2:]
    stop.halt(world.machine)
    failed = event("failed", manifest=world.digest, kind="environment", name="TOKEN", exit=1, reason="no value")
    world.boot = [*world.boot[:-1], failed]
    up(world)
    assert ["secrets", "deliver"] == world.did[-2:]
    assert [b"TOKEN=s3cr3t\n"] * 2 == given


def test_no_connection_to_a_sealed_box(world: World) -> None:
    """It accepts no login."""
    world.box = attrs.evolve(world.box, boot=BootMode.RESNAP)
    up(world)
    stop.halt(world.machine)
    world.connections.clear()
    world.machine.write_record(attrs.evolve(world.machine.record(), sealed=Sealed("worker", "site")))
    world.machine.data_key.touch()
    world.boot = [*world.boot[:-1], event("sealed", manifest=world.digest, role="worker", site="site")]
    up(world)
    assert [] == world.connections


def test_no_connection_to_a_machine_that_takes_no_commands(world: World) -> None:
    """A template would keep the login in its memory, and the machine of a job runs nothing else."""
    up(world)
    world.connections.clear()
    plan = make_plan(Project(world.box, None))
    bring_to_ready(world.machine, plan, timeout_s=5, must_send=True, connects=False)
    assert [] == world.connections


def test_no_early_connection_to_a_box_with_variables(world: World) -> None:
    """A login before the guest has its manifest would have none of them, and all later commands share it."""
    world.box = attrs.evolve(world.box, variables=(Variable("A", "x", None),))
    world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
    up(world)
    assert [["image", "disk", "start", "deliver"]] == world.connections
