"""A disk of any format as plain bytes: qemu-nbd(8) opens it and serves NBD over a private socket.

Protocol: NetworkBlockDevice/nbd, doc/proto.md, fixed newstyle without structured replies. The server is a process of
its own, so that kimbox parses no disk format here. It is terminated when kimbox exits.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import ranges
from kimbox.image.disk.ranges import Ranges

#: First words of the two sides, options and requests, as the protocol numbers them.
HELLO = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_EXPORT_NAME = 1
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3

#: Flags of both sides: fixed newstyle, no zeros after the export's size.
CLIENT_FLAGS = 3

#: Maximum size of a request, in bytes; servers accept up to 32 MiB.
PIECE_BYTES = 2 << 20

#: Size of the part of a disk that one `qemu-img map` describes, in bytes: its output grows with the pieces.
WINDOW_BYTES = 64 << 30

#: Timeouts of a server to open its disk and to answer, and the interval of attempts to connect, in seconds.
OPEN_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 120.0
LOOK_S = 0.005


@attrs.define
class Disk:
    """An open disk."""

    size_bytes: int
    _connection: socket.socket
    _handle: int = 0

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the disk. Raises ImageError beyond its end, or if they cannot be read."""
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise ImageError("it is shorter than what it says of itself")
        if size <= PIECE_BYTES:
            return self._read(offset, size)
        return b"".join(
            self._read(at, min(PIECE_BYTES, offset + size - at)) for at in range(offset, offset + size, PIECE_BYTES)
        )

    def write(self, offset: int, data: bytes) -> None:
        """Writes bytes."""
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            self._ask(WRITE, offset + at, len(piece), piece)

    def flush(self) -> None:
        """Returns when all that was written is on the host's disk."""
        self._ask(FLUSH, 0, 0)

    def _read(self, offset: int, size: int) -> bytes:
        if not size:
            return b""
        self._ask(READ, offset, size)
        return _receive(self._connection, size)

    def _ask(self, kind: int, offset: int, size: int, data: bytes = b"") -> None:
        self._handle += 1
        request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, kind, self._handle, offset, size)
        try:
            self._connection.sendall(request + data)
        except OSError as error:
            raise ImageError(f"the server of a disk ended: {error.strerror or error}") from None
        magic, failed, handle = struct.unpack(">IIQ", _receive(self._connection, 16))
        if magic != REPLY_MAGIC or handle != self._handle:
            raise ImageError("the server of a disk answers with nonsense")
        if failed:
            what = "written" if kind == WRITE else "read"
            hint = "make room, and try again" if failed in (errno.ENOSPC, errno.EDQUOT) else None
            raise ImageError(f"the disk cannot be {what}: {os.strerror(failed)}", hint=hint)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        try:
            count = connection.recv_into(view[at:])
        except OSError as error:
            raise ImageError(f"the server of a disk does not answer: {error.strerror or error}") from None
        if not count:
            raise ImageError("the server of a disk ended before its answer")
        at += count
    return bytes(data)


@contextlib.contextmanager
def opened(path: Path, image_format: str, *, writable: bool = False) -> Iterator[Disk]:
    """A disk of that format (`raw`, `qcow2`, ...), with its backing files, as bytes.

    Raises ImageError with the output of qemu-nbd if it cannot be opened, MissingToolError without qemu-nbd.
    """
    run.require("qemu-nbd", "it reads disks")
    with tempfile.TemporaryDirectory(prefix="kimbox-nbd-") as folder, contextlib.ExitStack() as stack:
        address = Path(folder) / "nbd"
        mode = [] if writable else ["--read-only"]
        cache = ["--cache=writeback", "--discard=unmap"]
        argv: list[str | Path] = ["qemu-nbd", *mode, *cache, f"--format={image_format}", f"--socket={address}", path]
        server = stack.enter_context(run.background(argv))
        connection = stack.enter_context(_connect(address, server, path))
        served = stack.pop_all()  # the folder is removed at once, so that no kill leaves it behind
    with served:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            size_bytes = _greet(connection)
        except ImageError:  # it listens before it has looked at the disk
            server.wait(ANSWER_TIMEOUT_S)
            raise ImageError(f"the disk {path} cannot be opened: {run.tail(server.output(), 3)}") from None
        yield Disk(size_bytes, connection)
        with contextlib.suppress(OSError):
            connection.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
            connection.shutdown(socket.SHUT_RDWR)
        code = server.wait(ANSWER_TIMEOUT_S)
        if code:
            raise ImageError(f"the disk {path} was not closed well: {run.tail(server.output())}")


def _connect(address: Path, server: run.BackgroundProcess, path: Path) -> socket.socket:
    """A connection to a server that is being started."""
    deadline = time.monotonic() + OPEN_TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(address))
        except OSError:
            connection.close()
            if server.code() is not None or time.monotonic() > deadline:
                raise ImageError(f"the disk {path} cannot be opened: {run.tail(server.output(), 3)}") from None
            time.sleep(LOOK_S)
        else:
            return connection


def _greet(connection: socket.socket) -> int:
    """Requests the only export; returns its size in bytes."""
    if _receive(connection, 16) != HELLO:
        raise ImageError("the server of a disk does not speak NBD")
    _receive(connection, 2)
    connection.sendall(struct.pack(">I", CLIENT_FLAGS) + OPTION_MAGIC + struct.pack(">II", OPTION_EXPORT_NAME, 0))
    size, _ = struct.unpack(">QH", _receive(connection, 10))
    return int(size)


@attrs.frozen
class Content:
    """Where a disk holds what, as pieces (start, end), ascending."""

    #: Stored in this file and not in its backing file; zeros that hide data of the backing file count.
    own: Ranges
    #: May read as something else than zeros, in whichever file it is stored.
    data: Ranges


def content(path: Path, image_format: str) -> Content:
    """Where a disk holds what. Raises CommandError if that cannot be read."""
    own, data, at = Ranges(), Ranges(), 0
    while True:
        window = ["--start-offset", str(at), "--max-length", str(WINDOW_BYTES)]
        told = run.run(["qemu-img", "map", "--output=json", *window, "-f", image_format, path]).stdout
        rows = json.loads(told)
        if not rows or not rows[-1]["length"]:  # an empty piece marks the end
            return Content(ranges.merged(own), ranges.merged(data))
        for row in rows:
            piece = row["start"], row["start"] + row["length"]
            if row["depth"] == 0 and row.get("present", True):
                own.append(piece)
            if not row["zero"]:
                data.append(piece)
        at = rows[-1]["start"] + rows[-1]["length"]
