"""The connection that ssh and exec share, and the life of a machine, with a driver double."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import feignedworld
import pytest
from feignedworld import World, up

from kimbox.actions import snapshot, stop
from kimbox.actions.provision import provision
from kimbox.errors import KimboxError
from kimbox.guest import shared
from kimbox.project.project import Project

world = feignedworld.world  # a fixture


def left(world: World) -> Path:
    """The socket of a connection that nobody listens at any more."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(world.machine.folder):
        listener.bind(shared.SOCKET)
    return world.machine.folder / shared.SOCKET


def test_the_shared_ssh_connection_ends_with_the_run(world: World) -> None:
    """Each verb that ends or begins a run leaves none: the next guest would never answer on it."""
    up(world)
    for act in (
        lambda: stop.halt(world.machine),
        lambda: up(world),
        lambda: stop.suspend(world.machine),
        lambda: up(world),
        lambda: provision(Project(world.box)),
        lambda: snapshot.save(world.machine, "now"),
        lambda: snapshot.restore(world.machine, "now"),
    ):
        there = left(world)
        act()
        assert not there.exists()


def test_it_ends_where_provisioning_does_not(world: World) -> None:
    """What was provisioned until then may have changed what a login gives."""
    up(world)
    there = left(world)
    world.after = []
    with pytest.raises(KimboxError, match="did not speak"):
        provision(Project(world.box), timeout_s=0.2)
    assert not there.exists()
