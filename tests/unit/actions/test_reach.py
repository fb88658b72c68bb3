"""How ssh reaches a box: with the host key that the guest reported, or not at all."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import makemachine
import pytest
from makemachine import HOST_KEY, OTHER_HOST_KEY, event, tell
from refused import refused

from kimbox.actions import observe
from kimbox.errors import StateError
from kimbox.guest import shared
from kimbox.guest.endpoint import Endpoint
from kimbox.machine.state import State


@pytest.fixture(autouse=True)
def _ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    monkeypatch.setattr(observe, "state", lambda _: State.READY)


def test_a_box_without_a_host_key_is_not_reached() -> None:
    """ssh never trusts a key on first use: without the event there is no connection."""
    machine = makemachine.make_machine()
    with refused(StateError, "host-key-missing", name=machine.name):
        observe.reach(machine)
    assert not machine.known_hosts.exists()


def test_the_reported_key_is_pinned_once() -> None:
    """The last key of this boot is written; a key that is known already is not replaced."""
    machine = makemachine.make_machine()
    tell(machine, event("hostkey", key=HOST_KEY))
    endpoint = observe.reach(machine)
    assert ("127.0.0.1", 20022) == (endpoint.host, endpoint.port)
    pinned = machine.known_hosts.read_text()
    assert HOST_KEY in pinned
    tell(machine, event("hostkey", key=OTHER_HOST_KEY))
    observe.reach(machine)
    assert pinned == machine.known_hosts.read_text()


def test_a_clone_is_reached_when_its_ssh_server_has_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """sshd starts again after the clone has its identity, and resets connections before that, and soon after its event.

    A clone that has sent nothing for a while has a server that runs.
    """
    machine = makemachine.make_machine(woken=True)
    tell(machine, event("hostkey", key=HOST_KEY), event("awake"))
    pauses_s: list[float] = []
    greets = iter([False, True])

    def wait(interval_s: float) -> None:
        pauses_s.append(interval_s)
        if len(pauses_s) == 3:
            tell(machine, event("sshd"))

    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr(observe, "_greets", lambda _: next(greets))
    with makemachine.running(machine):
        observe.reach(machine)
        assert 4 == len(pauses_s)
        os.utime(machine.events_file, (0, 0))
        observe.reach(machine)
    assert 4 == len(pauses_s)


@pytest.mark.parametrize("last", [True, None])
def test_a_clone_is_reached_over_the_shared_connection(monkeypatch: pytest.MonkeyPatch, last: bool | None) -> None:
    """For a command that uses it, so that the guest has one connection, and not for longer than without one.

    None: it is the connection of another command. Then the greeting decides.
    """
    machine = makemachine.make_machine(woken=True)
    tell(machine, event("hostkey", key=HOST_KEY), event("awake"), event("sshd"))
    opened, greets = iter([False, last]), iter([True])
    timeouts_s: list[float] = []

    def opens(_: Endpoint, timeout_s: float) -> bool | None:
        timeouts_s.append(timeout_s)
        return next(opened)

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(shared, "opens", opens)
    monkeypatch.setattr(observe, "_greets", lambda _: next(greets))
    with makemachine.running(machine):
        observe.reach(machine, shares=True)
    assert ([], [] if last is None else [True]) == ([*opened], [*greets])
    assert [True, True] == [0 < timeout_s <= observe.SSHD_TIMEOUT_S for timeout_s in timeouts_s]


@pytest.mark.parametrize(("sent", "expected"), [(b"SSH-2.0-x\r\n", True), (b"", False), (b"HTTP", False)])
def test_a_server_that_greets(sent: bytes, expected: bool) -> None:
    machine = makemachine.make_machine()
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = attrs.evolve(machine.endpoint(machine.record()), port=server.getsockname()[1])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(observe._greets, place)
            connection, _ = server.accept()
            connection.sendall(sent)
            connection.close()
            assert expected is answer.result()
    assert not observe._greets(place)
