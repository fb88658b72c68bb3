"""A store on a web server: GET, HEAD, PUT and DELETE, such as WebDAV. It needs no listing.

`saves/newest` has the number of the newest save, written after its manifest. It is a hint: the server is asked for the
saves after it, too. A manifest gets a temporary name, and `MOVE` with `Overwrite: F` gives it its own (RFC 4918, 10.6).
A server without MOVE gets `PUT` with `If-None-Match: *`, and must obey that if there are two savers.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import attrs

from kimbox import __version__
from kimbox.errors import KimboxError
from kimbox.transfer import address, connection
from kimbox.transfer.address import Login
from kimbox.transfer.connection import Deadline
from kimbox.transfer.stores import base

#: Timeout of a request without progress, in seconds.
STALL_S = 60.0

#: Size of the pieces in which a file is sent, in bytes.
PIECE_BYTES = 1 << 20

#: Maximum size of `saves/newest`, in bytes, and maximum number of saves after it that the server is asked for.
MAX_HINT_BYTES, MAX_AHEAD = 16, 1000

HINT = "saves/newest"

_FULL = 507


class _Body:
    """A file that is sent as a body. Each piece that is read postpones the deadline."""

    def __init__(self, file: IO[bytes], deadline: Deadline) -> None:
        self._file, self._deadline = file, deadline

    def read(self, size: int = PIECE_BYTES) -> bytes:
        self._deadline.postpone()
        return self._file.read(min(size, PIECE_BYTES) if size > 0 else PIECE_BYTES)


@attrs.define
class WebStore:
    """A folder of a web server. `url` ends without a slash."""

    url: str
    login: Login | None = attrs.field(repr=False)
    #: Folders that were created, or that the server creates by itself.
    _folders: set[str] = attrs.field(factory=set)

    def read(self, name: str, offset: int, size: int) -> bytes:
        size = min(size, base.READ_BYTES)
        if size <= 0:
            return b""
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        try:
            with self._request("GET", self._path(name), headers=headers) as answer:
                if answer.status == 200 and offset:
                    reason = "the server does not send a part of a file (Range)"
                    raise base.failed(self.url, f"reading {name}", reason)
                if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                    raise base.failed(self.url, f"reading {name}", "the server sent another part than requested")
                return self._body(answer, size, name)
        except _StatusError as error:
            if error.status == 404:
                raise base.missing(self.url, name) from None
            if error.status == 416:
                return b""
            raise self._error(f"reading {name}", error) from None

    def size(self, name: str) -> int | None:
        try:
            with self._request("HEAD", self._path(name)) as answer:
                length = answer.headers.get("Content-Length", "")
        except _StatusError as error:
            if error.status == 404:
                return None
            raise self._error(f"reading {name}", error) from None
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise base.failed(self.url, f"reading {name}", "the server does not tell the size of a file")
        return int(length)

    def write(self, name: str, source: Path) -> None:
        with source.open("rb") as file:
            self._put(self._path(name), file, source.stat().st_size, {})

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        if self.size(name) is not None:
            return False
        temporary = f"{name[:-5]}.{os.urandom(8).hex()}.tmp"
        self._put(temporary, io.BytesIO(data), len(data), {})
        try:
            if not self._moved(temporary, self._path(name)):
                self._put(self._path(name), io.BytesIO(data), len(data), {"If-None-Match": "*"})
        except _TakenError:
            return False
        finally:
            with contextlib.suppress(_StatusError, KimboxError), self._request("DELETE", temporary):
                pass
        if base.all_of(self, name, len(data)) != data:
            return False
        hint = str(int(name[6:12])).encode()
        with contextlib.suppress(KimboxError):  # the next saver finds the save without it
            self._put(HINT, io.BytesIO(hint), len(hint), {})
        return True

    def names(self, folder: str) -> list[str]:
        if folder != "saves":
            return []
        newest = self._hint()
        found = [f"saves/{newest:06}.json"] if newest and self.size(f"saves/{newest:06}.json") is not None else []
        for number in range(newest + 1, newest + MAX_AHEAD):
            name = f"saves/{number:06}.json"
            if self.size(name) is None:
                break
            found.append(name)
        return found

    def remove(self, name: str) -> None:
        try:
            with self._request("DELETE", self._path(name)):
                pass
        except _StatusError as error:
            if error.status != 404:
                raise self._error(f"removing {name}", error) from None

    def close(self) -> None:
        """Does nothing: each request has a connection of its own."""

    def _hint(self) -> int:
        try:
            with self._request("GET", HINT) as answer:
                text = self._body(answer, MAX_HINT_BYTES, HINT).decode("ascii", "replace").strip()
        except _StatusError as error:
            if error.status == 404:
                return 0
            raise self._error("reading saves/newest", error) from None
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0

    def _put(self, path: str, file: IO[bytes], size: int, headers: dict[str, str]) -> None:
        self._make_folder(path.rpartition("/")[0])
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size), **headers}
        try:
            with self._request("PUT", path, file=file, headers=headers):
                pass
        except _StatusError as error:
            if error.status == 412:
                raise _TakenError from None
            raise self._error(f"writing {path}", error) from None

    def _moved(self, source: str, target: str) -> bool:
        """Renames a file. Returns False if the server cannot do that. Raises _TakenError if the target exists."""
        headers = {"Destination": f"{self.url}/{quote(target)}", "Overwrite": "F"}
        try:
            with self._request("MOVE", source, headers=headers):
                return True
        except _StatusError as error:
            if error.status == 412:
                raise _TakenError from None
            if error.status in (400, 405, 501):
                return False
            raise self._error(f"writing {target}", error) from None

    def _make_folder(self, folder: str) -> None:
        """Creates a folder by MKCOL, in case that the server does not do so by itself (RFC 4918, 9.3)."""
        if folder in self._folders:
            return
        for path in ("", folder):
            with contextlib.suppress(_StatusError), self._request("MKCOL", f"{path}/" if path else ""):
                pass
        self._folders.add(folder)

    def _path(self, name: str) -> str:
        return base.check_name(name)

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, *, file: IO[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[Any]:
        """Sends a request. Raises _StatusError for a status of 300 and more, KimboxError if there is no answer."""
        deadline = Deadline(STALL_S)
        given = {"User-Agent": f"kimbox/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        request = connection.request(f"{self.url}/{quote(path)}", given, self.login)
        request.method = method
        if file is not None:
            request.data = _Body(file, deadline)
            request.add_header("Content-Length", given["Content-Length"])  # the line above removes it
        what = f"{method} {path}".rstrip()
        try:
            answer = connection.opener(deadline, self.login, has_digest=True).open(request, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                raise _StatusError(error.code, connection.reason_of(error)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise base.failed(self.url, what, str(getattr(error, "reason", error) or type(error).__name__)) from None
        with answer:
            yield answer

    def _body(self, answer: Any, size: int, name: str) -> bytes:
        """The first `size` bytes of a body. Raises KimboxError if it ends too early."""
        data = bytearray()
        try:
            while len(data) < size and (piece := answer.read1(size - len(data))):
                data += piece
        except (OSError, http.client.HTTPException) as error:
            raise base.failed(self.url, f"reading {name}", f"the connection was lost ({error})") from None
        length = answer.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and len(data) < min(size, int(length)):
            raise base.failed(self.url, f"reading {name}", "the connection was lost")
        return bytes(data)

    def _error(self, what: str, error: _StatusError) -> KimboxError:
        if error.status == _FULL:
            return base.full(self.url, what)
        hint = address.login_hint(self.url) if error.status == 401 else None
        if error.status in (403, 405, 501):
            hint = "the server must allow GET, HEAD, PUT and DELETE in this folder (WebDAV)"
        reason = f"the server answered with {error.status} {error.reason}"
        return base.failed(self.url, what, reason, hint, status=str(error.status))


class _StatusError(Exception):
    """An answer with a status of 300 and more."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.status, self.reason = status, reason


class _TakenError(Exception):
    """A conditional PUT was refused: the object exists."""


def open_web(url: str) -> WebStore:
    """Opens the store at an http or https URL. The login is that of the URL or of ~/.netrc."""
    clean, login = address.take(url)
    return WebStore(clean.rstrip("/"), login)
