"""The program that connects a guest to the other boxes of a network: real processes, and sockets in place of QEMU."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import makemachine
import pytest
from waiting import until

from kimbox.drivers.qemu import port, process
from kimbox.drivers.qemu.command import PORT, port_words
from kimbox.machine.folder import Machine
from kimbox.machine.networks import is_up, socket_name
from kimbox.machine.record import Record
from kimbox.spec.model import Network

ADDRESSES = {"a": "10.57.0.1", "b": "10.57.0.2", "c": "10.57.0.3"}
NETWORK = Network("lan", "10.57.0.0/24", tuple(ADDRESSES.items()))

ALL = b"\xff" * 6
IPV4, ARP, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"


class Card:
    """The network card of a box, with its program."""

    def __init__(self, name: str) -> None:
        self.machine = Machine(name)
        if not self.machine.exists:
            makemachine.make_machine(name, networks=(NETWORK,))
        self.record: Record = self.machine.record()
        self.guest, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.guest.settimeout(20)
        end, self._end = os.pipe()
        self.exit_code = process.start_port(self.machine, self.record, NETWORK, end, ours.fileno())
        os.close(end)
        ours.close()
        until("it receives", lambda: is_up(self.machine, self.record, NETWORK))

    @property
    def shell(self) -> int:
        """The process that starts the program again."""
        return next(pid for pid, argv in self._processes() if argv[0] != sys.executable)

    def program(self) -> int | None:
        """The process of the program; None if it does not run."""
        return next((pid for pid, argv in self._processes() if argv[0] == sys.executable), None)

    def _processes(self) -> Iterator[tuple[int, list[str]]]:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_text().split("\0")
                if str(PORT) in argv and (entry / "cwd").readlink() == self.machine.folder.resolve():
                    yield int(entry.name), argv

    def close(self) -> None:
        """Closes the pipe, as the end of QEMU does."""
        os.close(self._end)

    def end(self) -> None:
        """Ends it as the end of QEMU does."""
        self.close()
        until("the program has ended", lambda: self.exit_code() is not None)
        assert 0 == self.exit_code()
        assert not is_up(self.machine, self.record, NETWORK)


@contextlib.contextmanager
def cards(*names: str) -> Iterator[list[Card]]:
    made = [Card(name) for name in names]
    try:
        yield made
    finally:
        for card in made:
            if card.exit_code() is None:
                card.end()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose path is longer than that of a socket may be."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / ("x" * 100)))


def frame(sender: str, target: bytes, text: bytes = b"hello", ethertype: bytes = IPV4, mac: str = "") -> bytes:
    """Returns an IPv4 packet (RFC 791), or another one with the same bytes, from the address of a box."""
    own = port.mac_of(ADDRESSES[mac or sender])
    return target + own + ethertype + bytes(12) + socket.inet_aton(ADDRESSES[sender]) + bytes(4) + text


def mac(name: str) -> bytes:
    return port.mac_of(ADDRESSES[name])


def test_frames_reach_the_box_with_their_address() -> None:
    """Once, without a circle between three boxes. Of a broadcast, all others get one each."""
    with cards("a", "b", "c") as (a, b, c):
        a.guest.send(frame("a", mac("b"), b"one"))
        a.guest.send(frame("a", ALL, b"two"))
        a.guest.send(frame("a", mac("c"), b"three"))
        a.guest.send(frame("a", mac("b"), b"four"))
        assert [b"one", b"two", b"four"] == [b.guest.recv(2000)[34:] for _ in range(3)]
        assert [b"two", b"three"] == [c.guest.recv(2000)[34:] for _ in range(2)]
        b.guest.send(frame("b", mac("a"), b"answer"))
        assert b"answer" == a.guest.recv(2000)[34:]  # and none of its own came back before
        for card in (a, b, c):
            card.guest.setblocking(False)
            with pytest.raises(BlockingIOError):
                card.guest.recv(2000)


def test_boxes_start_and_end_in_any_order() -> None:
    """A frame for a box that does not run is lost, and the next one after its start arrives: also after kill -9."""
    with cards("a") as (a,):
        a.guest.send(frame("a", mac("b"), b"lost"))
        for text in (b"first", b"second"):
            with cards("b") as (b,):
                a.guest.send(frame("a", mac("b"), text))
                assert text == b.guest.recv(2000)[34:]
                b.guest.send(frame("b", mac("a"), text))
                assert text == a.guest.recv(2000)[34:]
            a.guest.send(frame("a", mac("b"), b"lost"))


def test_a_guest_sends_only_as_itself() -> None:
    """Frames with another source are not sent: MAC, IPv4, the sender of ARP, IPv6, and frames of a wrong size."""
    arp = mac("a") + socket.inet_aton(ADDRESSES["a"])
    forged = mac("a") + socket.inet_aton(ADDRESSES["c"])
    head = ALL + mac("a") + ARP + bytes(8)
    bad = [
        frame("c", mac("b"), mac="a"),
        frame("a", mac("b"), mac="c"),
        frame("a", mac("b"), ethertype=IPV6),
        head + forged,
        head + mac("c") + socket.inet_aton(ADDRESSES["a"]),
        b"short",
        frame("a", mac("b"), bytes(1500)),
    ]
    with cards("a", "b") as (a, b):
        for each in bad:
            a.guest.send(each)
        good = [head + arp, head + mac("a") + bytes(4), frame("a", mac("b"), bytes(1480))]
        for each in good:
            a.guest.send(each)
        assert good == [b.guest.recv(4000) for _ in good]


def test_a_guest_that_takes_nothing_stops_no_other() -> None:
    """Its frames wait, up to a limit; the others are lost. The sender goes on with the third box."""
    with cards("a", "b", "c") as (a, b, c):
        for number in range(port.MAX_WAITING * 2):
            a.guest.send(frame("a", mac("b"), str(number).encode()))
        a.guest.send(frame("a", mac("c"), b"on"))
        assert b"on" == c.guest.recv(2000)[34:]
        assert b"0" == b.guest.recv(2000)[34:]
        b.guest.send(frame("b", mac("c"), b"still"))
        assert b"still" == c.guest.recv(2000)[34:]


def test_a_program_that_is_killed_starts_again() -> None:
    """The guest has the same socket, and the others reach it as before. It still ends with QEMU."""
    with cards("a", "b") as (a, b):
        for text in (b"first", b"second"):
            killed = a.program()
            assert killed
            os.kill(killed, signal.SIGKILL)
            a.guest.send(frame("a", mac("b"), b"waits"))
            until("it runs again", lambda killed=killed: a.program() not in (None, killed))
            until("it receives", lambda: is_up(a.machine, a.record, NETWORK))
            assert b"waits" == b.guest.recv(2000)[34:]
            b.guest.send(frame("b", mac("a"), text))
            assert text == a.guest.recv(2000)[34:]


def test_a_program_without_its_shell_ends_with_qemu() -> None:
    """Who kills the shell that would start it again does not cut the box off."""
    with cards("a", "b") as (a, b):
        os.kill(a.shell, signal.SIGKILL)
        until("the shell has ended", lambda: a.exit_code() is not None)
        a.guest.send(frame("a", mac("b"), b"on"))
        assert b"on" == b.guest.recv(2000)[34:]
        a.close()
        until("the program has ended", lambda: a.program() is None)


def test_a_program_that_starts_after_the_end_of_qemu_takes_no_socket() -> None:
    """The next QEMU of the box may have it already."""
    with cards("a") as (a,):
        os.kill(a.shell, signal.SIGSTOP)
        os.kill(a.program() or 0, signal.SIGKILL)
        until("the program has ended", lambda: a.program() is None)
        a.close()
        place = a.machine.folder / socket_name(a.record, NETWORK)
        place.unlink()
        os.kill(a.shell, signal.SIGCONT)
        until("the shell has ended", lambda: a.exit_code() is not None)
        assert (0, False) == (a.exit_code(), place.exists())


def test_another_spec_is_another_network() -> None:
    """Its socket has another name."""
    one, other = (makemachine.make_machine(name, networks=(NETWORK,)).record() for name in ("a", "b"))
    names = {port_words(record, NETWORK, 3, 4)[7] for record in (one, other)}
    assert 1 == len(names)
    moved = makemachine.make_machine("c", networks=(NETWORK,), source="/elsewhere/kimbox.yaml").record()
    assert names != {port_words(moved, NETWORK, 3, 4)[7]}
    assert sys.executable == port_words(one, NETWORK, 3, 4)[0]
