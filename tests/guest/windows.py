"""A real X server of this host without a screen (Xvfb), and a program of a guest that opens a window on it."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

from conftest import until

from kimbox import run

#: Opens a window on $DISPLAY, and prints the colours that the server then has there. The protocol is X11, of which the
#: guest has no library: setup, CreateWindow, MapWindow, GetImage.
DRAW = r"""
import os, socket, struct, subprocess

def read(size):
    data = b""
    while len(data) < size:
        piece = server.recv(size - len(data))
        assert piece, "the server has closed the connection"
        data += piece
    return data

host, number = os.environ["DISPLAY"].split(".")[0].split(":")
cookie = bytes.fromhex(subprocess.check_output(["xauth", "list", os.environ["DISPLAY"]], text=True).split()[2])
server = socket.create_connection((host, 6000 + int(number)))
kind = b"MIT-MAGIC-COOKIE-1"
server.sendall(struct.pack("<cxHHHH2x", b"l", 11, 0, len(kind), len(cookie)) + kind + bytes(-len(kind) % 4) + cookie)
accepted, _, _, words = struct.unpack("<BxHHH", read(8))
answer = read(4 * words)
assert accepted == 1, answer
own, = struct.unpack_from("<I", answer, 4)
vendor, _, _, formats = struct.unpack_from("<HHBB", answer, 16)
root, = struct.unpack_from("<I", answer, 32 + vendor + -vendor % 4 + 8 * formats)
server.sendall(struct.pack("<BBHIIhhHHHHIIII", 1, 0, 10, own, root, 0, 0, 8, 8, 0, 1, 0, 0x202, 0x123456, 1))
server.sendall(struct.pack("<BxHI", 8, 2, own))
server.sendall(struct.pack("<BBHIhhHHI", 73, 2, 5, own, 0, 0, 8, 8, 0xFFFFFFFF))
while (head := read(32))[0] > 1:
    pass
assert head[0] == 1, head
image = read(4 * struct.unpack_from("<I", head, 4)[0])
print({pixel & 0xFFFFFF == 0x123456 for pixel, in struct.iter_unpack("<I", image)}, len(image))
"""

#: What `DRAW` prints if the window is there: 64 pixels of 4 bytes.
DRAWN = "{True} 256\n"


@contextlib.contextmanager
def x_server(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the server. Yields the variables of a program that may connect to it."""
    authority, cookie = folder / "Xauthority", secrets.token_hex(16)

    def allow(display: str) -> None:
        run.run(["xauth", "-f", authority, "add", display, ".", cookie])

    allow(":0")  # the server reads the cookie alone
    words = ["-displayfd", "1", "-nolisten", "tcp", "-auth", str(authority), "-screen", "0", "64x64x24"]
    # Without -noreset, the server forgets the cookie that ssh has from it when no program is connected.
    with run.background(["Xvfb", "-noreset", *words]) as server:
        until("the X server", lambda: re.search(r"(?m)^\d+$", server.output()) is not None, limit_s=60.0)
        number = re.search(r"(?m)^\d+$", server.output())
        assert number
        allow(f":{number[0]}")
        try:
            yield {"DISPLAY": f":{number[0]}", "XAUTHORITY": str(authority)}
        finally:
            server.send_signal(signal.SIGTERM)  # it removes its socket and its lock
            server.wait(60.0)
