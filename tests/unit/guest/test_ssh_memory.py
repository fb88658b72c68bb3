"""An ssh server is a guest, and cannot make kimbox take its memory before the login."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator

import paramiko
import pytest

from kimbox.guest import ssh

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[tuple[paramiko.Transport, socket.socket]]:
    """A transport of kimbox, which has not started, and the other end of its connection."""
    near, far = socket.socketpair()
    with near, far:
        yield ssh._light_transport(near), far


def send_forever(far: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                far.sendall(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [ssh.MAX_PACKET_BYTES + 8, 1 << 29, (1 << 32) - 1])
def test_a_huge_packet(server: tuple[paramiko.Transport, socket.socket], size: int) -> None:
    """It is refused when its length is read, and its bytes are not."""
    transport, far = server
    far.sendall(struct.pack(">IB", size - size % 8 + 4, 4) + bytes(64))
    tracemalloc.start()
    with pytest.raises(paramiko.SSHException, match="packet"):
        transport.packetizer.read_message()
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()


def test_a_greeting_without_an_end(server: tuple[paramiko.Transport, socket.socket]) -> None:
    """Neither one long line nor many lines."""
    transport, far = server
    thread = send_forever(far, b"x" * 4096)
    with pytest.raises(paramiko.SSHException, match="before the login"):
        transport.packetizer.readline(10)
    far.shutdown(socket.SHUT_RDWR)
    thread.join(20)


def test_an_ordinary_packet(server: tuple[paramiko.Transport, socket.socket]) -> None:
    """A packet of the largest size that servers send is read."""
    transport, far = server
    payload = b"\x15" + b"x" * (32 << 10)
    padding = -(len(payload) + 5) % 8 + 8
    packet = struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)
    thread = threading.Thread(target=far.sendall, args=(packet,))
    thread.start()
    number, message = transport.packetizer.read_message()
    thread.join(20)
    assert (0x15, len(payload) - 1) == (number, len(message.get_remainder()))
