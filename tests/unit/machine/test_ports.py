"""The choice of ports of the host, with real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import attrs
import makemachine
import ownhome
import pytest
from refused import refused

from kimbox.errors import StateError
from kimbox.machine import ports
from kimbox.machine.folder import Machine

home = ownhome.home  # a fixture


@pytest.fixture
def busy() -> Iterator[int]:
    """A port of this host on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_ports(count: int) -> range:
    """Consecutive ports that no program uses."""
    ports_in_row: list[int] = []
    for port in range(45000, 60000):
        ports_in_row = [*ports_in_row, port] if ports.is_free(port) else []
        if len(ports_in_row) == count:
            return range(ports_in_row[0], ports_in_row[0] + count)
    raise AssertionError("no free ports")


def test_a_port_in_use_is_not_chosen(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """kimbox skips a port on which another program listens, on this address or on all addresses."""
    free = free_ports(1)[0]
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104
        taken = everywhere.getsockname()[1]
        monkeypatch.setattr(ports, "AUTO_PORTS", (busy, taken, free))
        assert {22: free} == ports.choose(Machine("tiny"), {22: None}, {})


def test_the_previous_port_is_preferred(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box keeps its port from run to run, unless another program or machine has it."""
    first, last = free_ports(2)
    monkeypatch.setattr(ports, "AUTO_PORTS", (first,))
    assert {22: last} == ports.choose(Machine("tiny"), {22: None}, {22: last})
    assert {22: first} == ports.choose(Machine("tiny"), {22: None}, {22: busy})
    makemachine.make_machine("other", ssh_port=last, forwards={})
    assert {22: first} == ports.choose(Machine("tiny"), {22: None}, {22: last})


def test_two_machines_never_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A halted machine keeps its ports. A machine never gets the same port twice."""
    some = free_ports(6)
    monkeypatch.setattr(ports, "AUTO_PORTS", some)
    makemachine.make_machine("other", ssh_port=some[0], forwards={80: some[1]})
    chosen = ports.choose(Machine("tiny"), {22: None, 80: some[3], 81: None}, {})
    assert {22: some[2], 80: some[3], 81: some[4]} == chosen
    assert {some[0]: "other", some[1]: "other"} == ports.taken(Machine("tiny"))
    assert {} == ports.taken(Machine("other"))


def test_a_fixed_port_in_use_names_its_owner(busy: int) -> None:
    """The owner is another machine, or another program (empty). A port that is in the spec twice has its own code."""
    free = free_ports(1)[0]
    makemachine.make_machine("other", ssh_port=free, forwards={})
    for port, owner in {free: "other", busy: ""}.items():
        with refused(StateError, "port-in-use", name="tiny", host=str(port), guest="80", owner=owner) as caught:
            ports.choose(Machine("tiny"), {22: None, 80: port}, {})
        assert "in the spec of tiny" in str(caught.value.hint)
        why = "belongs to the box other" if owner else "is used by another program"
        assert f"port {port} of this host, requested for port 80 of the guest, {why}" == caught.value.message
    last = free_ports(3)[2]
    with refused(StateError, "duplicate", host=str(last), guest="81"):
        ports.choose(Machine("tiny"), {80: last, 81: last}, {})


def test_a_port_that_needs_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that this user may not use is not reported as in use."""

    def deny(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", deny)
    with refused(StateError, "port-needs-root", host="80", guest="80", owner=""):
        ports.choose(Machine("tiny"), {80: 80}, {})


def test_no_port_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all ports of the range are in use, the error says so."""
    monkeypatch.setattr(ports, "AUTO_PORTS", ())
    with refused(StateError, "no-free-port", name="tiny"):
        ports.choose(Machine("tiny"), {22: None}, {})


def test_damaged_and_unfinished_machines_have_no_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a record that cannot be read stop the choice."""
    some = free_ports(1)
    monkeypatch.setattr(ports, "AUTO_PORTS", some)
    makemachine.make_machine("other", ssh_port=some[0]).record_file.write_text("{")
    makemachine.make_machine(".tmp-third", ssh_port=some[0])
    assert {22: some[0]} == ports.choose(Machine("tiny"), {22: None}, {})


def test_machines_that_start_together_get_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lock covers the choice and the write of the record."""
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
