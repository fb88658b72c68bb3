"""A store on a web server: GET, HEAD, PUT and DELETE, such as WebDAV. It needs no listing.

`saves/newest` has the number of the newest save, written after its manifest. It is a hint: the server is asked for the
saves after it, too. A manifest gets a temporary name, and `MOVE` with `Overwrite: F` gives it its own (RFC 4918, 10.6).
A server without MOVE gets `PUT` with `If-None-Match: *`, and must obey that if there are two savers.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import quote

import attrs

from kimbox.errors import KimboxError
from kimbox.transfer import address
from kimbox.transfer.stores import base
from kimbox.transfer.stores.requests import Server, StatusError

#: Maximum size of `saves/newest`, in bytes, and maximum number of saves after it that the server is asked for.
MAX_HINT_BYTES, MAX_AHEAD = 16, 1000

HINT = "saves/newest"

_FULL = 507


@attrs.define
class WebStore:
    """A folder of a web server. `url` ends without a slash."""

    url: str
    _server: Server
    #: Folders that were created, or that the server creates by itself.
    _folders: set[str] = attrs.field(factory=set)

    def read(self, name: str, offset: int, size: int) -> bytes:
        try:
            return self._server.part(self._at(base.check_name(name)), offset, size, f"reading {name}")
        except StatusError as error:
            if error.status == 404:
                raise base.missing(self.url, name) from None
            raise self._error(f"reading {name}", error) from None

    def size(self, name: str) -> int | None:
        try:
            return self._server.size(self._at(base.check_name(name)), f"reading {name}")
        except StatusError as error:
            raise self._error(f"reading {name}", error) from None

    def write(self, name: str, source: Path) -> None:
        with source.open("rb") as file:
            self._put(base.check_name(name), file, source.stat().st_size, {})

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        if self.size(name) is not None:
            return False
        temporary = f"{name[:-5]}.{os.urandom(8).hex()}.tmp"
        self._put(temporary, io.BytesIO(data), len(data), {})
        try:
            if not self._moved(temporary, base.check_name(name)):
                self._put(base.check_name(name), io.BytesIO(data), len(data), {"If-None-Match": "*"})
        except _TakenError:
            return False
        finally:
            with contextlib.suppress(StatusError, KimboxError), self._server.request("DELETE", self._at(temporary)):
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
            with self._server.request("DELETE", self._at(base.check_name(name))):
                pass
        except StatusError as error:
            if error.status != 404:
                raise self._error(f"removing {name}", error) from None

    def close(self) -> None:
        """Does nothing: each request has a connection of its own."""

    def _hint(self) -> int:
        try:
            with self._server.request("GET", self._at(HINT)) as answer:
                text = self._server.body(answer, MAX_HINT_BYTES, HINT).decode("ascii", "replace").strip()
        except StatusError as error:
            if error.status == 404:
                return 0
            raise self._error("reading saves/newest", error) from None
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0

    def _put(self, path: str, file: IO[bytes], size: int, headers: dict[str, str]) -> None:
        self._make_folder(path.rpartition("/")[0])
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size), **headers}
        try:
            with self._server.request("PUT", self._at(path), file=file, headers=headers):
                pass
        except StatusError as error:
            if error.status == 412:
                raise _TakenError from None
            raise self._error(f"writing {path}", error) from None

    def _moved(self, source: str, target: str) -> bool:
        """Renames a file. Returns False if the server cannot do that. Raises _TakenError if the target exists."""
        headers = {"Destination": self._at(target), "Overwrite": "F"}
        try:
            with self._server.request("MOVE", self._at(source), headers=headers):
                return True
        except StatusError as error:
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
            with contextlib.suppress(StatusError), self._server.request("MKCOL", self._at(f"{path}/" if path else "")):
                pass
        self._folders.add(folder)

    def _at(self, path: str) -> str:
        return f"{self.url}/{quote(path)}"

    def _error(self, what: str, error: StatusError) -> KimboxError:
        if error.status == _FULL:
            return base.full(self.url, what)
        hint = address.login_hint(self.url) if error.status == 401 else None
        if error.status in (403, 405, 501):
            hint = "the server must allow GET, HEAD, PUT and DELETE in this folder (WebDAV)"
        reason = f"the server answered with {error.status} {error.reason}"
        return base.failed(self.url, what, reason, hint, status=str(error.status))


class _TakenError(Exception):
    """A conditional PUT was refused: the object exists."""


def open_web(url: str) -> WebStore:
    """Opens the store at an http or https URL. The login is that of the URL or of ~/.netrc."""
    clean, login = address.take(url)
    clean = clean.rstrip("/")
    return WebStore(clean, Server(clean, login))
