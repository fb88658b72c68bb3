"""A web server on 127.0.0.1 that offers one file and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site:
    """What the server offers, how it misbehaves, and what it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        #: Its version, as `ETag`; None: no validator is sent.
        self.etag: str | None = '"1"'
        self.takes_ranges = True
        #: Added to the start of a range in what is told of it.
        self.range_lie = 0
        #: For one request after another: break off after so many bytes of the body.
        self.break_after: list[int] = []
        #: For one request after another: answer with this status and no file.
        self.statuses: list[int] = []
        #: Added to the length that is told.
        self.lie = 0
        #: Whether the length is told at all.
        self.tells_length = True
        #: Called once an answer broke off.
        self.after_break: Any = None
        #: After the first bytes, one byte each time this passes (seconds); 0: nothing at all.
        self.drip_s: float | None = None
        self.location: str | None = None
        #: Every request's headers.
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.port = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/box.img"

    @property
    def ranges(self) -> list[str | None]:
        """The Range of every request."""
        return [r.get("Range") for r in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Serves the site of its class."""

    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers, or not quite."""
        site = self.site
        site.requests.append(dict(self.headers.items()))
        site.paths.append(self.path)
        self.close_connection = True
        if site.location is not None:
            self.answer(302, {"Location": site.location, "Content-Length": "0"})
        elif site.statuses:
            self.answer(site.statuses.pop(0), {"Content-Length": "0"})
        else:
            self.send_file()

    def answer(self, status: int, headers: dict[str, str]) -> None:
        """The head of an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self) -> None:
        """The file, or the part of it that was asked for."""
        site, size = self.site, len(self.site.content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and site.takes_ranges else 0
        if self.headers.get("If-Range", site.etag) != site.etag:
            start = 0
        headers = {"ETag": site.etag} if site.etag else {}
        if start >= size:
            self.answer(416, headers | {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        body = site.content[start:]
        if site.tells_length:
            headers["Content-Length"] = str(len(body) + site.lie)
        if start:
            headers["Content-Range"] = f"bytes {start + site.range_lie}-{size - 1}/{size}"
        self.answer(206 if start else 200, headers | {"Connection": "close"})
        with contextlib.suppress(OSError):
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        """All of it, or as much as the site is willing to send."""
        site = self.site
        if site.drip_s is not None:
            self.wfile.write(body[:1000])
            for at in range(1000, len(body)):
                if site.closing.wait(site.drip_s or None):
                    return
                self.wfile.write(body[at : at + 1])
            return
        if site.break_after:
            self.wfile.write(body[: site.break_after.pop(0)])
            if site.after_break:
                site.after_break()
            return
        self.wfile.write(body)


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[Site]:
    """The site while it serves."""
    site = Site(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    server.daemon_threads = True
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
