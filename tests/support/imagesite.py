"""A web server on 127.0.0.1 with one file. Tests can make it answer wrongly."""

from __future__ import annotations

import base64
import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site:
    """The file of the server, the faults of its answers, and the requests."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        #: The file's version, as `ETag`. None: no validator is sent.
        self.etag: str | None = '"1"'
        self.takes_ranges = True
        #: Whether the server sends a range although `If-Range` does not match.
        self.ignores_condition = False
        #: Added to the start of the range in `Content-Range`, in bytes.
        self.range_lie = 0
        #: For each request in order: the number of bytes of the body after which the connection ends.
        self.break_after: list[int] = []
        #: For each request in order: the status of an answer without a file.
        self.statuses: list[int] = []
        #: Added to `Content-Length`, in bytes.
        self.lie = 0
        #: Whether `Content-Length` is sent.
        self.tells_length = True
        #: Called after each answer that `break_after` has ended.
        self.after_break: Any = None
        #: Pause after each byte that follows the first 1000 bytes, in seconds. 0: no byte follows. None: no pauses.
        self.drip_s: float | None = None
        self.location: str | None = None
        #: `user:password`, without which the server refuses a request with status 401.
        self.login: str | None = None
        #: The headers of every request.
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.port = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/box.img"

    @property
    def ranges(self) -> list[str | None]:
        """The header `Range` of every request."""
        return [r.get("Range") for r in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Serves the site that its class attribute names."""

    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Writes no log."""

    def do_GET(self) -> None:
        """Sends an answer, possibly with the faults of the site."""
        site = self.site
        site.requests.append(dict(self.headers.items()))
        site.paths.append(self.path)
        self.close_connection = True
        expected = f"Basic {base64.b64encode((site.login or '').encode()).decode()}"
        if site.login is not None and self.headers.get("Authorization") != expected:
            self.answer(401, {"WWW-Authenticate": 'Basic realm="x"', "Content-Length": "0"})
        elif site.location is not None:
            self.answer(302, {"Location": site.location, "Content-Length": "0"})
        elif site.statuses:
            self.answer(site.statuses.pop(0), {"Content-Length": "0"})
        else:
            self.send_file()

    def answer(self, status: int, headers: dict[str, str]) -> None:
        """Sends the status and the headers of an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self) -> None:
        """Sends the file, or the requested range."""
        site, size = self.site, len(self.site.content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and site.takes_ranges else 0
        if self.headers.get("If-Range", site.etag) != site.etag and not site.ignores_condition:
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
        """Sends the body completely, slowly or in part, as the site requires."""
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
    """Serves a file. Yields the site, whose attributes a test can change."""
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
