"""A client of VNC (RFC 6143) that reads the screen of a box."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from pathlib import Path

from conftest import Kimbox, until

from kimbox.sockets import short_path

#: Fills the first text console of a guest with red. VGA and the kernel's framebuffer have the same palette.
PAINT = r"printf '\033[0;41m\033[2J\033[H' | sudo tee /dev/tty1 >/dev/null"

#: The red of that palette: of VGA, and of a framebuffer. Blue, green, red.
REDS = (bytes((0, 0, 0xA8)), bytes((0, 0, 0xAA)))

#: Timeout of each part of an answer, in seconds.
ANSWER_S = 60.0


class Screen:
    """A connection to the screen of a box."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        with short_path(place) as path:
            self._socket.connect(path)
        version = self._read(12)
        assert b"RFB 003.008\n" == version
        self._socket.sendall(version)
        (count,) = self._read(1)
        assert 1 in self._read(count)  # no password: the socket is in a folder that only the user can enter
        self._socket.sendall(b"\x01")
        assert bytes(4) == self._read(4)
        self._socket.sendall(b"\x01")
        self.width, self.height, _, length = struct.unpack(">HH16sI", self._read(24))
        self._read(length)
        # 32 bits for each pixel in true colour, with red at bit 16; then the encoding Raw alone.
        self._socket.sendall(struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        self._socket.sendall(struct.pack(">BxHi", 2, 1, 0))

    def colours(self) -> Counter[bytes]:
        """The number of pixels of each colour that the screen has now."""
        self._socket.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        while self._read(1) != b"\x00":  # a bell
            pass
        found: Counter[bytes] = Counter()
        _, rectangles = struct.unpack(">BH", self._read(3))
        for _ in range(rectangles):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            assert 0 == encoding
            found.update(pixel[:3] for (pixel,) in struct.iter_unpack("4s", self._read(4 * width * height)))
        return found

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            assert piece, "the screen has closed the connection"
            data += piece
        return data


def shows_its_guest(kimbox: Kimbox, box: str) -> None:
    """The screen has the colour that a program of the guest writes to its console."""
    place = Path(kimbox.json("view", box)["socket"])

    def is_red() -> bool:
        kimbox.sh(box, PAINT)  # a login prompt that has just started clears the console
        screen = Screen(place)
        try:
            colours = screen.colours()
        finally:
            screen.close()
        return sum(colours[red] for red in REDS) > sum(colours.values()) // 2

    until("the screen is red", is_red, limit_s=120.0)
