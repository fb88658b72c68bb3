"""Reads and writes a disk of any format as plain bytes: qemu-nbd(8) opens it and serves NBD over a private socket.

Protocol: NetworkBlockDevice/nbd, doc/proto.md, fixed newstyle without structured replies. The server is a separate
process, so this module parses no disk format. The server is terminated when kimbox exits.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import ranges
from kimbox.image.disk.ranges import Ranges
from kimbox.temporary import temporary_folder

#: Magic numbers, options and types of requests of the protocol.
HELLO = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_EXPORT_NAME = 1
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3

#: Flags of the client: fixed newstyle, no zeros after the export's size.
CLIENT_FLAGS = 3

#: Maximum size of a request, in bytes. Servers accept up to 32 MiB.
PIECE_BYTES = 2 << 20

#: Size of the part of a disk that one call of `qemu-img map` describes, in bytes. It limits the size of the output.
WINDOW_BYTES = 64 << 30

#: Timeouts for a server to open its disk and to answer, and the interval of attempts to connect, in seconds.
OPEN_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 120.0
CONNECT_INTERVAL_S = 0.005


@attrs.define
class Disk:
    """An open disk."""

    size_bytes: int
    _connection: socket.socket
    _handle: int = 0

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes of the disk. Raises ImageError if they cannot be read, or are beyond the end of the disk."""
        if size == 0:  # a caller that compares with a smaller disk asks for what that has of a range
            return b""
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise ImageError(
                f"its metadata refers to data beyond its end: {size} bytes at {offset}, its size is {self.size_bytes}",
                code="disk-damaged",
                fields={"fault": "beyond-the-end", "offset": str(offset), "size": str(size)},
            )
        if size <= PIECE_BYTES:
            return self._read(offset, size)
        return b"".join(
            self._read(at, min(PIECE_BYTES, offset + size - at)) for at in range(offset, offset + size, PIECE_BYTES)
        )

    def write(self, offset: int, data: bytes) -> None:
        """Writes bytes. Raises ImageError if they cannot be written."""
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            self._request(WRITE, offset + at, len(piece), piece)

    def flush(self) -> None:
        """Waits until all written data is on the host's disk. Raises ImageError if that fails."""
        self._request(FLUSH, 0, 0)

    def _read(self, offset: int, size: int) -> bytes:
        if not size:
            return b""
        self._request(READ, offset, size)
        return _receive(self._connection, size)

    def _request(self, kind: int, offset: int, size: int, data: bytes = b"") -> None:
        """Sends a request and reads the header of the reply. Raises ImageError if the request failed."""
        self._handle += 1
        request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, kind, self._handle, offset, size)
        try:
            self._connection.sendall(request + data)
        except OSError as error:
            raise ImageError(
                f"qemu-nbd has closed the connection: {error.strerror or error}", code="disk-unreadable"
            ) from None
        magic, error_number, handle = struct.unpack(">IIQ", _receive(self._connection, 16))
        if magic != REPLY_MAGIC or handle != self._handle:
            raise ImageError("the reply of qemu-nbd is not a valid NBD reply", code="unexpected-output")
        if error_number:
            verb = "read" if kind == READ else "written"
            is_full = error_number in (errno.ENOSPC, errno.EDQUOT)
            raise ImageError(
                f"the disk cannot be {verb}: {os.strerror(error_number)}",
                code="no-space" if is_full else "disk-unreadable",
                hint="free some space on the host, then run the command again" if is_full else None,
                fields={"verb": verb},
            )


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes from the server. Raises ImageError if the server does not send them."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        try:
            count = connection.recv_into(view[at:])
        except OSError as error:
            raise ImageError(f"qemu-nbd does not answer: {error.strerror or error}", code="disk-unreadable") from None
        if not count:
            raise ImageError("qemu-nbd has closed the connection before its answer", code="disk-unreadable")
        at += count
    return bytes(data)


@contextlib.contextmanager
def opened(path: Path, image_format: str, *, writable: bool = False) -> Iterator[Disk]:
    """Opens a disk of a format (`raw`, `qcow2`, ...), with its backing files, and closes it at the end.

    Raises ImageError with the output of qemu-nbd if the disk cannot be opened or closed, MissingToolError without
    qemu-nbd.
    """
    run.require("qemu-nbd", "it reads disks")
    with temporary_folder("kimbox-nbd-") as folder, contextlib.ExitStack() as stack:
        address = folder / "nbd"
        mode = [] if writable else ["--read-only"]
        cache = ["--cache=writeback", "--discard=unmap"]
        argv: list[str | Path] = ["qemu-nbd", *mode, *cache, f"--format={image_format}", f"--socket={address}", path]
        server = stack.enter_context(run.background(argv))
        connection = stack.enter_context(_connect(address, server, path))
        served = stack.pop_all()  # the folder is removed now, so that a kill leaves nothing on the host
    with served:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            size_bytes = _greet(connection)
        except ImageError:  # qemu-nbd listens before it opens the disk
            server.wait(ANSWER_TIMEOUT_S)
            raise _cannot_open(path, server) from None
        yield Disk(size_bytes, connection)
        with contextlib.suppress(OSError):
            connection.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
            connection.shutdown(socket.SHUT_RDWR)
        code = server.wait(ANSWER_TIMEOUT_S)
        if code:
            raise ImageError(
                f"qemu-nbd failed when it closed the disk {path}: {run.tail(server.output())}",
                code="disk-unreadable",
                fields={"path": str(path), "verb": "closed"},
            )


def _cannot_open(path: Path, server: run.BackgroundProcess) -> ImageError:
    return ImageError(
        f"the disk {path} cannot be opened: {run.tail(server.output(), 3)}",
        code="disk-unreadable",
        fields={"path": str(path), "verb": "opened"},
    )


def _connect(address: Path, server: run.BackgroundProcess, path: Path) -> socket.socket:
    """A connection to a server that is starting. Raises ImageError if it exits or exceeds OPEN_TIMEOUT_S."""
    deadline = time.monotonic() + OPEN_TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(address))
        except OSError:
            connection.close()
            if server.code() is not None or time.monotonic() > deadline:
                raise _cannot_open(path, server) from None
            time.sleep(CONNECT_INTERVAL_S)
        else:
            return connection


def _greet(connection: socket.socket) -> int:
    """Requests the only export. Returns its size in bytes."""
    if _receive(connection, 16) != HELLO:
        raise ImageError("the greeting of qemu-nbd is not that of an NBD server", code="unexpected-output")
    _receive(connection, 2)
    connection.sendall(struct.pack(">I", CLIENT_FLAGS) + OPTION_MAGIC + struct.pack(">II", OPTION_EXPORT_NAME, 0))
    size, _ = struct.unpack(">QH", _receive(connection, 10))
    return int(size)


@attrs.frozen
class Content:
    """The allocated parts of a disk, as byte ranges (start, end), ascending."""

    #: Stored in this file and not in its backing file, including zeros that hide data of the backing file.
    own: Ranges
    #: May have bytes other than zero, in this file or in a backing file.
    data: Ranges


def content(path: Path, image_format: str) -> Content:
    """The allocated parts of a disk. Raises CommandError if qemu-img cannot read it."""
    own, data, at = Ranges(), Ranges(), 0
    while True:
        window = ["--start-offset", str(at), "--max-length", str(WINDOW_BYTES)]
        output = run.run(["qemu-img", "map", "--output=json", *window, "-f", image_format, path]).stdout
        rows = json.loads(output)
        if not rows or not rows[-1]["length"]:  # an empty range marks the end
            return Content(ranges.merged(own), ranges.merged(data))
        for row in rows:
            piece = row["start"], row["start"] + row["length"]
            if row["depth"] == 0 and row.get("present", True):
                own.append(piece)
            if not row["zero"]:
                data.append(piece)
        at = rows[-1]["start"] + rows[-1]["length"]
