"""Folders and networks that no process serves are problems of a box, also for a monitoring system."""

from __future__ import annotations

import socket
from pathlib import Path

import makemachine
import pytest

from kimbox.cli import connections, spaces
from kimbox.filelocks import locked
from kimbox.machine import forwarding, mounts
from kimbox.machine.networks import socket_name
from kimbox.sockets import short_path
from kimbox.spec.model import Mount, Network


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return tmp_path


def test_a_folder_that_is_not_served() -> None:
    machine = makemachine.make_machine("tiny", mounts=(Mount(Path("/srv"), "/srv/host"),))
    assert ["mount-lost"] == [code for code, _ in spaces.lost(machine, machine.record())]
    with locked(mounts.lock_file(machine, 0)):
        assert [] == spaces.lost(machine, machine.record())


def test_forwards_without_a_process() -> None:
    machine = makemachine.make_machine("tiny", auto_forwards=True)
    ((code, detail),) = connections.lost(machine, machine.record())
    assert ("forwards-down", True) == (code, "`kimbox up tiny`" in detail)
    with locked(machine.folder / forwarding.LOCK):
        assert [] == connections.lost(machine, machine.record())


def test_a_network_that_is_not_connected() -> None:
    network = Network("lan", "10.57.0.0/24", (("tiny", "10.57.0.1"),))
    machine = makemachine.make_machine("tiny", networks=(network,))
    ((code, detail),) = connections.lost(machine, machine.record())
    assert ("network-down", True) == (code, "`kimbox reload tiny`" in detail)
    place = machine.folder / socket_name(machine.record(), network)
    with short_path(place) as path, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(path)
        assert [] == connections.lost(machine, machine.record())
