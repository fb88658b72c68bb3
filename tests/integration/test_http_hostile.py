"""Downloads from servers that do not follow HTTP: each ends with an error, in bounded time and memory."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import rawserver
from rawserver import Peer
from refused import refused

from kimbox.errors import ImageError
from kimbox.transfer import http
from kimbox.transfer.connection import _Redirects

MIB = 1 << 20

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

#: A digest that no answer has.
OTHER = "0" * 64


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and short waits."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(http, "STALL_S", 0.3)


def sends(head: bytes, forever: bytes, pause_s: float = 0.0) -> Callable[[Peer], None]:
    """Returns an answer with a part that never ends."""

    def answer(peer: Peer) -> None:
        if peer.send(head):
            peer.send_endlessly(forever, pause_s)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        sends(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        sends(b"HTTP/1.1 200 OK\r\n", b"X", 0.05),
        sends(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n", 0.05),
        sends(CHUNKED + b"1\r\nx\r\n0\r\n", b"X-Y: z\r\n"),
        sends(CHUNKED, b"1", 0.05),
        sends(CHUNKED, b"1\r\nx\r\n", 0.05),
        sends(b"", b"", 0.05),
    ],
    ids=["100 Continue", "a header", "headers", "trailers", "a chunk's size", "small chunks", "nothing"],
)
def test_an_answer_without_an_end(tmp_path: Path, answer: Callable[[Peer], None]) -> None:
    """Each attempt ends at its deadline, whatever the server sends meanwhile, and the download fails."""
    with rawserver.serving(answer) as (url, peers), refused(ImageError, "download-failed"):
        http.fetch(url, tmp_path / "part", OTHER)
    assert len(http.PAUSES_S) + 1 == len(peers)


def test_the_body_of_a_redirect_is_not_read(tmp_path: Path) -> None:
    """A redirect with a body without an end costs no memory and no time."""

    def answer(peer: Peer) -> None:
        if b"/other" in peer.request:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbox\n")
        elif peer.send(b"HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n"):
            peer.send_endlessly(bytes(MIB))

    with rawserver.serving(answer) as (url, peers):
        tracemalloc.start()
        assert hashlib.sha256(b"box\n").hexdigest() == http.fetch(url, tmp_path / "part", None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 2 == len(peers)
    assert peak < 8 * MIB


@pytest.mark.parametrize(
    "target",
    ["http://[::1", "http://a..b/", f"http://{'a' * 70}.example/", "http://h:99999/", "http://h:x/", "//["],
)
def test_a_redirect_to_no_url(tmp_path: Path, target: str) -> None:
    """The error names the target."""
    head = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    with rawserver.serving(lambda peer: peer.send(head) and None) as (url, peers), refused(ImageError, "bad-url"):
        http.fetch(url, tmp_path / "part", OTHER)
    assert 1 == len(peers)


@pytest.mark.parametrize("url", ["http://a..b/x", f"http://{'a' * 70}.example/x", "http://h:x/x", "http://[::1/x"])
def test_a_location_that_is_no_url(tmp_path: Path, url: str) -> None:
    """The same URLs, when they are given."""
    with refused(ImageError, "bad-url"):
        http.fetch(url, tmp_path / "part", OTHER)


def test_bytes_that_are_received_again_are_no_progress(tmp_path: Path) -> None:
    """A server that breaks off at the same place, and then sends another range, cannot block kimbox."""
    half = b"x" * (4 * http.DRIP_BYTES)

    def answer(peer: Peer) -> None:
        if b"Range:" in peer.request:
            peer.send(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-2/3\r\nContent-Length: 2\r\n\r\nxx")
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * len(half)) + half)

    with rawserver.serving(answer) as (url, peers), refused(ImageError, "download-failed"):
        http.fetch(url, tmp_path / "part", OTHER)
    assert len(peers) <= len(http.PAUSES_S) + 2


def test_a_few_bytes_in_each_attempt(tmp_path: Path) -> None:
    """Attempts that each get less than DRIP_BYTES further are no progress, also if several together would be."""
    count = http.DRIP_BYTES - 1

    def answer(peer: Peer) -> None:
        start = int(peer.request.partition(b"bytes=")[2].partition(b"-")[0] or 0)
        total = 100 * http.DRIP_BYTES
        head = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d" % (start, total - 1, total)
        head = head if start else b"HTTP/1.1 200 OK"
        peer.send(head + b"\r\nContent-Length: %d\r\n\r\n" % (total - start) + b"x" * count)

    with rawserver.serving(answer) as (url, peers), refused(ImageError, "download-failed"):
        http.fetch(url, tmp_path / "part", OTHER)
    assert len(peers) <= len(http.PAUSES_S) + 1


def test_a_status_416_without_an_end(tmp_path: Path) -> None:
    """A server that refuses every range after it has sent a part."""
    half = b"x" * (4 * http.DRIP_BYTES)

    def answer(peer: Peer) -> None:
        if b"Range:" in peer.request:
            peer.send(b"HTTP/1.1 416 No\r\nContent-Range: bytes */1\r\nContent-Length: 0\r\n\r\n")
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * len(half)) + half)

    with rawserver.serving(answer) as (url, peers), refused(ImageError, "download-failed"):
        http.fetch(url, tmp_path / "part", OTHER)
    assert len(peers) <= len(http.PAUSES_S) + 2


def test_long_words_of_a_server(tmp_path: Path) -> None:
    """The reason of a status line and a validator are limited."""
    reason = b"r" * 60_000
    with (
        rawserver.serving(lambda peer: peer.send(b"HTTP/1.1 404 %s\r\n\r\n" % reason) and None) as (url, _),
        refused(ImageError, "download-failed", status="404") as caught,
    ):
        http.fetch(url, tmp_path / "part", OTHER)
    assert len(caught.value.message) < 1000


def test_the_record_of_a_download_has_no_token(tmp_path: Path) -> None:
    """A URL can contain a token. PART.json has a digest of the URL, and only the user can read it."""
    tag = b'"' + b"e" * 60_000 + b'"'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: %s\r\n\r\nbox" % tag
    with rawserver.serving(lambda peer: peer.send(head) and None) as (url, _), refused(ImageError, "download-failed"):
        http.fetch(f"{url}?token=hunter2", tmp_path / "part", OTHER)
    record = tmp_path / "part.json"
    assert 0o600 == record.stat().st_mode & 0o777
    assert "hunter2" not in record.read_text()
    keys = {"url", "location", "total", "validator", "received_bytes", "received_sha256"}
    assert keys == json.loads(record.read_text()).keys()
    assert record.stat().st_size < 1000


@pytest.mark.parametrize(("has_digest", "is_followed"), [(True, True), (False, False)])
def test_a_redirect_from_https_to_http(*, has_digest: bool, is_followed: bool) -> None:
    """It is followed if the digest of the file is known. Otherwise nothing would show that the file was changed."""
    import urllib.request
    from http.client import HTTPMessage
    from io import BytesIO

    from kimbox.transfer.connection import Deadline

    redirects = _Redirects(Deadline(1), None, has_digest=has_digest)
    request = urllib.request.Request("https://example.org/a?token=x")
    call = lambda: redirects.redirect_request(  # noqa: E731
        request, BytesIO(), 302, "Found", HTTPMessage(), "http://example.org/b"
    )
    if is_followed:
        assert call() is not None
    else:
        with refused(ImageError, "bad-url", url="https://example.org/a"):
            call()
