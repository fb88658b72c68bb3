"""Requests to a web server for stores: bodies from files, a deadline that progress postpones, and bounded answers.

A request that can be repeated is sent again after a lost connection, and after a status in connection.TRANSIENT: once
after each pause of PAUSES_S at most. A request that must not happen twice is sent once.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
from collections.abc import Iterator, Mapping
from typing import IO, Any

import attrs

from kimbox import __version__
from kimbox.errors import ImageError, KimboxError
from kimbox.log import log
from kimbox.transfer import connection
from kimbox.transfer.address import Login, public_url
from kimbox.transfer.connection import Deadline
from kimbox.transfer.stores import base

#: Timeout of a request without progress, in seconds.
STALL_S = 60.0

#: Size of the pieces in which a file is sent, in bytes.
PIECE_BYTES = 1 << 20

#: Pauses before the next attempts, in seconds.
PAUSES_S = (0.5, 1.0, 2.0, 4.0)

#: Methods that have the same effect if the server has done them already (RFC 9110, 9.2.2).
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class _LostError(KimboxError):
    """The connection was lost before an answer, or could not be made: another attempt may succeed."""


class _CutError(KimboxError):
    """The connection was lost in the body of an answer."""


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


def _wait(reason: str, pause_s: float) -> None:
    """Waits before another attempt."""
    log.now(f"{reason}; retrying")
    time.sleep(pause_s)


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

        With `file`, its header Content-Length must be given. Without conditions, it is sent again if that may help.
        Raises StatusError for a status of 300 and more, KimboxError (`store-failed`) if there is no answer.
        """
        given = headers or {}
        start = file.tell() if file is not None else 0
        pauses = iter(PAUSES_S if method in REPEATABLE and "If-None-Match" not in given else ())
        while True:
            try:
                answer = self._open(method, url, file, given, token)
                break
            except StatusError as error:
                planned_s = next(pauses, None) if error.status in connection.TRANSIENT else None
                if planned_s is None:
                    raise
                reason = f"{method} {public_url(url)}: the server answered with {error.status} {error.reason}"
                _wait(reason, connection.pause_s(error.headers, planned_s))
            except _LostError as error:
                planned_s = next(pauses, None)
                if planned_s is None:
                    raise
                _wait(error.message, planned_s)
            if file is not None:
                file.seek(start)
        with answer:
            yield answer

    def _open(
        self, method: str, url: str, file: IO[bytes] | None, headers: Mapping[str, str], token: str | None
    ) -> Any:
        """Sends a request once, and returns the answer. Raises the errors of `request`."""
        deadline = Deadline(STALL_S)
        given = {"User-Agent": f"kimbox/{__version__}", "Accept-Encoding": "identity", **headers}
        what = f"{method} {public_url(url)}"
        try:
            made = connection.request(url, given, self.login)
            made.method = method
            if token is not None:
                made.add_unredirected_header("Authorization", f"Bearer {token}")
            if file is not None:
                made.data = _Body(file, deadline)
                made.add_header("Content-Length", given["Content-Length"])  # the line above removes it
            return connection.opener(deadline, self.login, has_digest=False).open(made, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                raise StatusError(error.code, connection.reason_of(error), dict(error.headers)) from None
        except ImageError as error:  # a redirect that is not followed
            raise base.failed(self.store, what, error.message) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            failure = base.failed(self.store, what, str(cause or type(cause).__name__)[:200])
            if isinstance(cause, ConnectionError | http.client.IncompleteRead):
                raise _LostError(failure.message, code=failure.code, fields=failure.fields) from None
            raise failure from None

    def _cut(self, what: str, reason: str) -> _CutError:
        """The error of a body that ends too early."""
        error = base.failed(self.store, what, reason)
        return _CutError(error.message, code=error.code, fields=error.fields)

    def body(self, answer: Any, size: int, what: str) -> bytes:
        """Returns the first `size` bytes of a body. Raises KimboxError (`store-failed`) if it ends too early."""
        data = bytearray()
        try:
            while len(data) < size and (piece := answer.read1(size - len(data))):
                data += piece
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._cut(what, f"the connection was lost ({error})") from None
        length = answer.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and len(data) < min(size, int(length)):
            raise self._cut(what, "the connection was lost")
        return bytes(data)

    def part(self, url: str, offset: int, size: int, what: str, token: str | None = None) -> bytes:
        """Returns up to `size` bytes of a file from `offset`; nothing beyond its end. Raises StatusError."""
        for planned_s in PAUSES_S:
            try:
                return self._part(url, offset, size, what, token)
            except _CutError as error:
                _wait(error.message, planned_s)
        return self._part(url, offset, size, what, token)

    def _part(self, url: str, offset: int, size: int, what: str, token: str | None) -> bytes:
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
