"""Passes one connection of a guest on to a server: reads stdin, writes to the server, and the other way round.

QEMU starts this program for each connection of a guest to an address of `guestfwd` (command.py). Its stdin, stdout and
stderr are one socket, whose other end is the guest: nothing else may be written to it.

    relay.py ADDRESS PORT FILE COUNT

At most COUNT connections are open at the same time: each holds a lock on one byte of FILE. This file is run by itself,
so that it starts fast, and imports nothing of kimbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading

#: Timeout of the connection to the server, in seconds.
CONNECT_TIMEOUT_S = 30.0

#: Size of one read, in bytes.
READ_BYTES = 64 << 10


def take_slot(file: str, count: int) -> bool:
    """Locks a free byte of a file until this process ends. False if `count` connections are open."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for number in range(count):
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            return True
    return False


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copies from one socket to the other until its end, which it passes on."""
    with contextlib.suppress(OSError):
        while data := source.recv(READ_BYTES):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main(address: str, port: str, file: str, count: str) -> None:
    """Connects, and copies in both directions until both have ended."""
    if not take_slot(file, int(count)):
        return
    guest = socket.socket(fileno=os.dup(0))
    with socket.create_connection((address, int(port)), timeout=CONNECT_TIMEOUT_S) as server:
        server.settimeout(None)
        to_guest = threading.Thread(target=copy, args=(server, guest), daemon=True)
        to_guest.start()
        copy(guest, server)
        to_guest.join()


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # the guest sees a closed connection
        main(*sys.argv[1:])
