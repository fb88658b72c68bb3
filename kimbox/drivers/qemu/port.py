"""Connects a guest to the other boxes of one network of its spec. It is a program of its own, beside QEMU.

QEMU has no switch: its hub would send frames in a circle between three boxes, and multicast on 127.0.0.1 reaches every
user of the host. So each box has a socket in the folder of its machine, which only its user can enter, and a
program that sends each frame of the guest to the socket of the box whose address it has. Nothing is connected: boxes
start and end in any order, and a frame for one that does not run is lost, as on a wire.

    python -I -S port.py END GUEST ADDRESS SOCKET [ADDRESS=SOCKET...]

END is the end of a pipe for reading, whose other end QEMU has: the program ends with QEMU. If it is killed, it is
started again with the same descriptors, and what QEMU sends meanwhile waits in its socket. GUEST is a datagram socket
that QEMU sends frames to. The first ADDRESS and SOCKET belong to this box. This file imports the standard library only.

A guest is hostile: it sends only from its own address (IPv4 and ARP), so that no box takes the place of another, and
nothing from outside of the network gets into it.
"""

from __future__ import annotations

import collections
import contextlib
import select
import selectors
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

#: First bytes of the MAC address of a box in a network, before its IPv4 address: a locally administered one.
MAC_PREFIX = bytes.fromhex("026b")

#: Maximum size of a frame: an Ethernet header with a VLAN tag, and the MTU of Ethernet.
MAX_FRAME_BYTES = 1518

#: Maximum number of frames that wait for a guest which does not take them. The next ones are lost.
MAX_WAITING = 1000

#: How long a frame waits for room at the socket of another box, in microseconds: it has few places (unix(7)).
SEND_WAIT_US = 1000

_BROADCAST, _IPV4, _ARP = b"\xff" * 6, b"\x08\x00", b"\x08\x06"


def mac_of(address: str) -> bytes:
    """Returns the MAC address of the box with this IPv4 address."""
    return MAC_PREFIX + socket.inet_aton(address)


def is_own(frame: bytes, address: str) -> bool:
    """Whether the box with this address may send a frame: IPv4 or ARP with its own addresses as the source."""
    mac, own = mac_of(address), socket.inet_aton(address)
    if not 14 <= len(frame) <= MAX_FRAME_BYTES or frame[6:12] != mac:
        return False
    if frame[12:14] == _IPV4:
        return frame[26:30] == own
    # ARP (RFC 826): hardware and protocol address of the sender. A probe (RFC 5227) has no protocol address.
    return frame[12:14] == _ARP and frame[22:28] == mac and frame[28:32] in (own, bytes(4))


class Port:
    """The sockets of a box in one network."""

    def __init__(self, guest: socket.socket, address: str, path: str, peers: Mapping[str, str]) -> None:
        self._guest, self._address = guest, address
        self._paths = {mac_of(peer): path for peer, path in peers.items()}
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=MAX_WAITING)
        Path(path).unlink(missing_ok=True)  # of the last run: it ends with QEMU, and leaves its socket
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, SEND_WAIT_US))
        guest.setblocking(False)

    def run(self, end: int) -> None:
        """Passes frames on until the pipe `end` is at its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(end, selectors.EVENT_READ)
            selector.register(self._socket, selectors.EVENT_READ)
            guest = selector.register(self._guest, selectors.EVENT_READ)
            while True:
                for key, events in selector.select():
                    if key.fd == end:
                        return
                    if key.fileobj is self._socket:
                        self._take()
                    elif events & selectors.EVENT_READ:
                        self._send()
                self._deliver()
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
                if guest.events != wanted:
                    guest = selector.modify(self._guest, wanted)

    def _take(self) -> None:
        """Takes the frames of other boxes."""
        with contextlib.suppress(OSError):
            while len(self._waiting) < MAX_WAITING:
                self._waiting.append(self._socket.recv(MAX_FRAME_BYTES, socket.MSG_DONTWAIT))
            self._socket.recv(MAX_FRAME_BYTES, socket.MSG_DONTWAIT)  # lost: the guest takes none

    def _deliver(self) -> None:
        """Gives the guest as many of the frames as it takes now."""
        with contextlib.suppress(BlockingIOError):
            while self._waiting:
                with contextlib.suppress(ConnectionError):
                    self._guest.send(self._waiting[0])
                self._waiting.popleft()

    def _send(self) -> None:
        """Sends one frame of the guest to the box, or to all, whose address it has."""
        try:
            frame = self._guest.recv(MAX_FRAME_BYTES + 1)
        except OSError:
            return
        if not is_own(frame, self._address):
            return
        target = frame[:6]
        for mac, path in self._paths.items():
            if target in (mac, _BROADCAST):
                self._pass_on(frame, path)

    def _pass_on(self, frame: bytes, path: str) -> None:
        """Sends a frame to the socket of a box. It is lost if that does not run, or takes none for a moment."""
        for _ in range(2):
            try:
                self._socket.sendto(frame, path)
            except BlockingIOError:
                self._take()  # that box may wait for this one
            except OSError:
                return
            else:
                return


def main(arguments: list[str]) -> None:
    """Runs the program with its arguments."""
    end, guest, address, path, *others = arguments
    ended = select.poll()
    ended.register(int(end), select.POLLIN)
    if ended.poll(0):
        return  # started again after the end of QEMU: the socket may belong to the program of the next QEMU
    peers = dict(other.split("=", 1) for other in others)
    Port(socket.socket(fileno=int(guest)), address, path, peers).run(int(end))


if __name__ == "__main__":
    main(sys.argv[1:])
