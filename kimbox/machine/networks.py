"""The socket of a machine in a network between boxes of one spec (kimbox/drivers/qemu/port.py)."""

from __future__ import annotations

import hashlib
import os
import socket

from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.spec.model import Network

#: Number of hex digits of the digest of a spec's path in the name of a socket.
SPEC_DIGITS = 8


def socket_name(record: Record, network: Network) -> str:
    """Returns the file name of the sockets of a network, the same in the folder of each of its machines.

    It has the digest of the spec's path, because boxes of two specs are not in one network.
    """
    digest = hashlib.sha256(record.source.encode()).hexdigest()[:SPEC_DIGITS]
    return f"network-{network.name}-{digest}"


def is_up(machine: Machine, record: Record, network: Network) -> bool:
    """Whether a process receives at the socket of a machine in a network."""
    name = socket_name(record, network)
    try:  # through the open folder, because the path of a socket has at most 107 bytes (unix(7))
        folder = os.open(machine.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(f"/proc/self/fd/{folder}/{name}")
        finally:
            os.close(folder)
    except OSError:
        return False
    return True
