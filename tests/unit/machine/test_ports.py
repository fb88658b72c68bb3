"""Ports, with real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import attrs
import makemachine
import ownhome
import pytest

from kimbox.errors import StateError
from kimbox.machine import ports
from kimbox.machine.folder import Machine

home = ownhome.home  # a fixture


@pytest.fixture
def busy() -> Iterator[int]:
    """A port of this host that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_ports(count: int) -> range:
    """Ports that nobody uses, one after the other."""
    found: list[int] = []
    for port in range(45000, 60000):
        found = [*found, port] if ports.is_free(port) else []
        if len(found) == count:
            return range(found[0], found[0] + count)
    raise AssertionError("no free ports")


def test_a_port_in_use_is_not_chosen(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """kimbox passes over what somebody listens on, on this address or on all."""
    free = free_ports(1)[0]
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104
        taken = everywhere.getsockname()[1]
        monkeypatch.setattr(ports, "AUTO_PORTS", (busy, taken, free))
        assert {22: free} == ports.choose(Machine("tiny"), {22: None}, {})


def test_the_port_of_before_is_preferred(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box keeps its port from run to run, unless somebody else has it now."""
    first, last = free_ports(2)
    monkeypatch.setattr(ports, "AUTO_PORTS", (first,))
    assert {22: last} == ports.choose(Machine("tiny"), {22: None}, {22: last})
    assert {22: first} == ports.choose(Machine("tiny"), {22: None}, {22: busy})
    makemachine.make_machine("other", ssh_port=last, forwards={})
    assert {22: first} == ports.choose(Machine("tiny"), {22: None}, {22: last})


def test_two_machines_never_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports that a machine was given stay its own while it is halted; a box never gives itself one twice."""
    some = free_ports(6)
    monkeypatch.setattr(ports, "AUTO_PORTS", some)
    makemachine.make_machine("other", ssh_port=some[0], forwards={80: some[1]})
    chosen = ports.choose(Machine("tiny"), {22: None, 80: some[3], 81: None}, {})
    assert {22: some[2], 80: some[3], 81: some[4]} == chosen
    assert {some[0]: "other", some[1]: "other"} == ports.taken(Machine("tiny"))
    assert {} == ports.taken(Machine("other"))


def test_a_fixed_port_in_use_names_its_owner(busy: int) -> None:
    """Another box by its name; else another program; or the user's rights."""
    free = free_ports(1)[0]
    makemachine.make_machine("other", ssh_port=free, forwards={})
    for port, why in {free: "belongs to the box other", busy: "is used by another program"}.items():
        with pytest.raises(StateError, match=f"port {port} of this host, wanted for port 80 .*, {why}") as refused:
            ports.choose(Machine("tiny"), {22: None, 80: port}, {})
        assert "in the spec of tiny" in str(refused.value.hint)
    with pytest.raises(StateError, match="wanted twice"):
        ports.choose(Machine("tiny"), {80: (last := free_ports(3)[2]), 81: last}, {})


def test_a_port_that_needs_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a port is forbidden is not that somebody uses it."""

    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(StateError, match="may not be used without root"):
        ports.choose(Machine("tiny"), {80: 80}, {})


def test_no_port_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the range is an error in words."""
    monkeypatch.setattr(ports, "AUTO_PORTS", ())
    with pytest.raises(StateError, match="no port is free"):
        ports.choose(Machine("tiny"), {22: None}, {})


def test_damaged_and_unfinished_machines_do_not_hinder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that cannot be read, and one that is being made, own nothing."""
    some = free_ports(1)
    monkeypatch.setattr(ports, "AUTO_PORTS", some)
    makemachine.make_machine("other", ssh_port=some[0]).record_file.write_text("{")
    makemachine.make_machine(".tmp-third", ssh_port=some[0])
    assert {22: some[0]} == ports.choose(Machine("tiny"), {22: None}, {})


def test_machines_that_start_together_get_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing and recording happen under one lock."""
    monkeypatch.setattr(ports, "AUTO_PORTS", free_ports(8))
    made = [makemachine.make_machine(f"box{n}", ssh_port=1, forwards={}) for n in range(4)]

    def start(machine: Machine) -> None:
        with ports.allotting():
            chosen = ports.choose(machine, {22: None}, {})
            machine.write_record(attrs.evolve(machine.record(), ssh_port=chosen[22]))

    threads = [threading.Thread(target=start, args=(machine,)) for machine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({machine.record().ssh_port for machine in made}) == 4
