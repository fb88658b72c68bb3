"""Sends Ethernet frames to a running box and reads its answers, as a port scan does.

QEMU's user network only passes forwarded connections to the box. The frames go around it.

Two filters of QEMU on the box's network device read frames from a socket (filter-redirector) and write all frames to a
file (filter-dump). Formats: Ethernet II, ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), neighbour discovery
(RFC 4861), TCP (RFC 9293), pcap.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox.drivers.qemu import qmp
from kimbox.drivers.qemu.command import GUEST_ADDRESS
from kimbox.machine.folder import Machine

#: The sender's addresses: link-local IPv6, IPv4 in QEMU's user network, and a locally administered MAC address.
OURS = {6: ipaddress.IPv6Address("fe80::1:2:3:4").packed, 4: ipaddress.IPv4Address("10.0.2.77").packed}
OUR_MAC = bytes.fromhex("020000000001")

TCP, ICMPV6 = 6, 58
SYN, ACK = 0x02, 0x10


def checksum(data: bytes) -> int:
    """Returns the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@attrs.frozen
class Packet:
    """A TCP packet from the box to the sender: version of IP, source port and flags of TCP."""

    version: int
    port: int
    flags: int


@attrs.frozen
class Wire:
    """The network device of a box, and its addresses by version of IP. The box has no other IPv4 address."""

    to_box: socket.socket
    dump: Path
    mac: bytes
    addresses: dict[int, bytes]

    def _send(self, ethertype: int, payload: bytes) -> None:
        frame = self.mac + OUR_MAC + struct.pack("!H", ethertype) + payload
        self.to_box.sendall(struct.pack("!I", len(frame)) + frame)

    def _send_ip(self, version: int, kind: int, payload: bytes, checksum_at: int) -> None:
        """Sends a packet to the box, with its checksums."""
        ends = OURS[version] + self.addresses[version]
        total = checksum(ends + struct.pack("!II", len(payload), kind) + payload)
        payload = payload[:checksum_at] + struct.pack("!H", total) + payload[checksum_at + 2 :]
        if version == 6:
            self._send(0x86DD, struct.pack("!IHBB", 6 << 28, len(payload), kind, 255) + ends + payload)
            return
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, kind, 0) + ends
        self._send(0x0800, head[:10] + struct.pack("!H", checksum(head)) + ends + payload)

    def introduce(self) -> None:
        """Sends a neighbour solicitation and an ARP request, from which the box reads the sender's addresses."""
        self._send_ip(6, ICMPV6, struct.pack("!BBHI", 135, 0, 0, 0) + self.addresses[6] + b"\x01\x01" + OUR_MAC, 2)
        self._send(0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + OUR_MAC + OURS[4] + bytes(6) + self.addresses[4])

    def knock(self, port: int) -> None:
        """Sends a TCP SYN to a port by IPv6 and by IPv4."""
        for version in (6, 4):
            self._send_ip(version, TCP, struct.pack("!HHIIBBHHH", 50000, port, 1, 0, 5 << 4, SYN, 4096, 0, 0), 16)

    def answered(self, version: int) -> set[int]:
        """Returns the ports of the box that have sent any TCP packet."""
        return {packet.port for packet in self._packets() if packet.version == version}

    def opened(self, version: int) -> set[int]:
        """Returns the ports of the box that have accepted a connection."""
        return {p.port for p in self._packets() if (p.version, p.flags) == (version, SYN | ACK)}

    def _packets(self) -> Iterator[Packet]:
        """Yields the TCP packets from the box to the sender that the dump contains."""
        data = self.dump.read_bytes()
        at = 24
        while at + 16 <= len(data):
            length = int.from_bytes(data[at + 8 : at + 12], "little")
            frame = data[at + 16 : at + 16 + length]
            at += 16 + length
            version = {b"\x86\xdd": 6, b"\x08\x00": 4}.get(frame[12:14])
            if frame[6:12] != self.mac or version is None:
                continue
            kind, to, head = (frame[20], frame[38:54], 54) if version == 6 else (frame[23], frame[30:34], 34)
            if kind == TCP and to == OURS[version] and len(frame) >= head + 20:
                yield Packet(version, int.from_bytes(frame[head : head + 2]), frame[head + 13])


@contextlib.contextmanager
def wired(machine: Machine, address: str, folder: Path) -> Iterator[Wire]:
    """Connects to the network device of a running box that has this link-local IPv6 address."""
    path, dump = folder / "wire", folder / "dump"
    backend = {
        "type": "socket",
        "data": {"addr": {"type": "unix", "data": {"path": str(path)}}, "server": True, "wait": False},
    }

    def execute(command: str, **arguments: object) -> None:
        qmp.execute(machine.qmp_socket, command, arguments)

    execute("chardev-add", id="wire", backend=backend)
    with socket.socket(socket.AF_UNIX) as to_box:
        to_box.connect(str(path))
        execute("object-add", **{"qom-type": "filter-dump", "id": "dump", "netdev": "net0", "file": str(dump)})
        execute(
            "object-add",
            **{"qom-type": "filter-redirector", "id": "in", "netdev": "net0", "queue": "tx", "indev": "wire"},
        )
        try:
            mac = bytes.fromhex(machine.record().mac.replace(":", ""))
            addresses = {6: ipaddress.IPv6Address(address).packed, 4: ipaddress.IPv4Interface(GUEST_ADDRESS).packed}
            yield Wire(to_box, dump, mac, addresses)
        finally:
            for name in ("in", "dump"):
                execute("object-del", id=name)
    execute("chardev-remove", id="wire")
