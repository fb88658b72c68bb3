"""The socket of a machine in a network between boxes of one spec (kimbox/drivers/qemu/port.py)."""

from __future__ import annotations

import hashlib
import socket

from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.sockets import short_path
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
    place = machine.folder / socket_name(record, network)
    try:
        with short_path(place) as path, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(path)
    except OSError:
        return False
    return True
