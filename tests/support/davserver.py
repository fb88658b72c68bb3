"""A small WebDAV server on 127.0.0.1, which can lose connections, be full, and have no MOVE."""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import webfolder

PIECE_BYTES = 64 << 10


@attrs.define
class Dav:
    """The state of a server: its folder, and what it does wrong."""

    folder: Path
    port: int = 0
    #: Methods that it does not have.
    without: tuple[str, ...] = ()
    #: Number of bytes of bodies after which it breaks off a connection; None: never.
    dies_after: int | None = None
    is_full: bool = False
    #: Answers before the usual ones, the first first: a status, or 0 for a connection that is reset. `retry_after`: the
    #: header Retry-After of them.
    troubles: list[int] = attrs.field(factory=list)
    retry_after: str | None = None
    #: The next body of this length or more is cut off in its middle.
    cuts_body_from: int | None = None
    #: The header Authorization that it requires.
    authorization: str | None = None
    requests: list[str] = attrs.field(factory=list)
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dav/tiny"


class Handler(BaseHTTPRequestHandler):
    """Answers for the folder of a Dav."""

    protocol_version = "HTTP/1.1"

    def __init__(self, dav: Dav, *args: Any) -> None:
        self.dav = dav
        super().__init__(*args)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.dav.cuts_body_from is not None and len(data) >= self.dav.cuts_body_from:
            self.dav.cuts_body_from, self.close_connection = None, True
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def is_refused(self) -> bool:
        """Reads the request. Whether it was answered with an error."""
        self.dav.requests.append(f"{self.command} {self.path}")
        if self.dav.troubles:
            status = self.dav.troubles.pop(0)
            self.close_connection = True
            if status:
                headers = {"Retry_After": self.dav.retry_after} if self.dav.retry_after else {}
                self.answer(status, **headers)
            else:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        elif self.command in self.dav.without:
            self.close_connection = True
            self.answer(405)
        elif self.dav.authorization not in (None, self.headers.get("Authorization")):
            self.close_connection = True
            self.answer(401)
        else:
            return False
        return True

    @property
    def file(self) -> Path:
        return self.dav.folder / unquote(urlsplit(self.path).path).lstrip("/")

    def do_GET(self) -> None:
        if self.is_refused():
            return
        if not self.file.is_file():
            self.answer(404)
            return
        data, (status, headers) = self.file.read_bytes(), (200, {})
        if wanted := self.headers.get("Range"):
            start, end = wanted.removeprefix("bytes=").split("-")
            if int(start) >= len(data):
                self.answer(416)
                return
            total, status = len(data), 206
            data = data[int(start) : int(end) + 1]
            headers = {"Content_Range": f"bytes {start}-{int(start) + len(data) - 1}/{total}"}
        self.answer(status, data, **headers)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        if self.is_refused():
            return
        body, left = bytearray(), int(self.headers["Content-Length"])
        while left and (piece := self.rfile.read(min(left, PIECE_BYTES))):
            body += piece
            left -= len(piece)
            if self.dav.dies_after is not None:
                self.dav.dies_after -= len(piece)
                if self.dav.dies_after < 0:
                    self.close_connection = True
                    self.connection.close()
                    return
        with self.dav.lock:
            if self.dav.is_full:
                self.answer(507)
            elif self.headers.get("If-None-Match") == "*" and self.file.exists():
                self.answer(412)
            elif not self.file.parent.is_dir():
                self.answer(409)
            else:
                self.file.write_bytes(body)
                self.answer(201)

    def do_MKCOL(self) -> None:
        if self.is_refused():
            return
        try:
            self.file.mkdir()
        except OSError:
            self.answer(405)
        else:
            self.answer(201)

    def do_DELETE(self) -> None:
        if self.is_refused():
            return
        exists = self.file.exists()
        self.file.unlink(missing_ok=True)
        self.answer(204 if exists else 404)

    def do_MOVE(self) -> None:
        if self.is_refused():
            return
        target = self.dav.folder / urlsplit(self.headers["Destination"]).path.lstrip("/")
        with self.dav.lock:
            if target.exists() and self.headers.get("Overwrite") == "F":
                self.answer(412)
            else:
                self.file.replace(target)
                self.answer(201)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Dav]:
    """Runs a server with an empty folder /dav."""
    (folder / "dav").mkdir(parents=True)
    dav = Dav(folder)
    with webfolder.answering(functools.partial(Handler, dav)) as port:
        dav.port = port
        yield dav
