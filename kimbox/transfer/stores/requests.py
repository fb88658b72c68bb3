"""Requests to a web server for stores: bodies from files, a deadline that progress postpones, and bounded answers."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
from collections.abc import Iterator, Mapping
from typing import IO, Any

import attrs

from kimbox import __version__
from kimbox.errors import ImageError
from kimbox.transfer import connection
from kimbox.transfer.address import Login, public_url
from kimbox.transfer.connection import Deadline
from kimbox.transfer.stores import base

#: Timeout of a request without progress, in seconds.
STALL_S = 60.0

#: Size of the pieces in which a file is sent, in bytes.
PIECE_BYTES = 1 << 20


class StatusError(Exception):
    """An answer with a status of 300 and more."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.reason, self.headers = status, reason, headers


class _Body:
    """A file that is sent as a body. Each piece that is read postpones the deadline."""

    def __init__(self, file: IO[bytes], deadline: Deadline) -> None:
        self._file, self._deadline = file, deadline

    def read(self, size: int = PIECE_BYTES) -> bytes:
        self._deadline.postpone()
        return self._file.read(min(size, PIECE_BYTES) if size > 0 else PIECE_BYTES)


@attrs.frozen
class Server:
    """A web server. `store` is the public URL of the store, for messages; `login` is that of the user's URL."""

    store: str
    login: Login | None = attrs.field(repr=False)

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        file: IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> Iterator[Any]:
        """Sends a request, with the login of its server or with a bearer token, and yields the answer.

        With `file`, its header Content-Length must be given. Raises StatusError for a status of 300 and more,
        KimboxError (`store-failed`) if there is no answer.
        """
        deadline = Deadline(STALL_S)
        given = {"User-Agent": f"kimbox/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        what = f"{method} {public_url(url)}"
        try:
            made = connection.request(url, given, self.login)
            made.method = method
            if token is not None:
                made.add_unredirected_header("Authorization", f"Bearer {token}")
            if file is not None:
                made.data = _Body(file, deadline)
                made.add_header("Content-Length", given["Content-Length"])  # the line above removes it
            answer = connection.opener(deadline, self.login, has_digest=False).open(made, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                raise StatusError(error.code, connection.reason_of(error), dict(error.headers)) from None
        except ImageError as error:  # a redirect that is not followed
            raise base.failed(self.store, what, error.message) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)[:200]
            raise base.failed(self.store, what, reason) from None
        with answer:
            yield answer

    def body(self, answer: Any, size: int, what: str) -> bytes:
        """Returns the first `size` bytes of a body. Raises KimboxError (`store-failed`) if it ends too early."""
        data = bytearray()
        try:
            while len(data) < size and (piece := answer.read1(size - len(data))):
                data += piece
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise base.failed(self.store, what, f"the connection was lost ({error})") from None
        length = answer.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and len(data) < min(size, int(length)):
            raise base.failed(self.store, what, "the connection was lost")
        return bytes(data)

    def part(self, url: str, offset: int, size: int, what: str, token: str | None = None) -> bytes:
        """Returns up to `size` bytes of a file from `offset`; nothing beyond its end. Raises StatusError."""
        size = min(size, base.READ_BYTES)
        if size <= 0:
            return b""
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        try:
            with self.request("GET", url, headers=headers, token=token) as answer:
                if answer.status == 200 and offset:
                    raise base.failed(self.store, what, "the server does not send a part of a file (Range)")
                if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                    raise base.failed(self.store, what, "the server sent another part than requested")
                return self.body(answer, size, what)
        except StatusError as error:
            if error.status == 416:
                return b""
            raise

    def size(self, url: str, what: str, token: str | None = None, accept: str | None = None) -> int | None:
        """Returns the size of a file in bytes; None if there is none. Raises StatusError."""
        try:
            with self.request("HEAD", url, token=token, headers={"Accept": accept} if accept else None) as answer:
                length = answer.headers.get("Content-Length", "")
        except StatusError as error:
            if error.status == 404:
                return None
            raise
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise base.failed(self.store, what, "the server does not tell the size of a file")
        return int(length)
