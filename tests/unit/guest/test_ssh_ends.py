"""The shared ssh connection ends when a run of the machine starts or ends. The driver is a double."""

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


def leave_socket(world: World) -> Path:
    """Leaves the socket of a connection that accepts no clients. Returns its path."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(world.machine.folder):
        listener.bind(shared.SOCKET)
    return world.machine.folder / shared.SOCKET


def test_the_shared_ssh_connection_ends_with_the_run(world: World) -> None:
    """Each verb that starts or ends a run removes the socket, because the next guest cannot answer on it."""
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
        path = leave_socket(world)
        act()
        assert not path.exists()


def test_it_ends_if_provisioning_fails(world: World) -> None:
    """The steps that ran may have changed the environment of a login."""
    up(world)
    path = leave_socket(world)
    world.after = []
    with pytest.raises(KimboxError, match="provisiond sent no event"):
        provision(Project(world.box), timeout_s=0.2)
    assert not path.exists()
