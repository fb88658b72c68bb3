"""Downloads a large file from an http(s) URL. Resumes after a failure, limits the size, and computes the sha256.

PART          the bytes received so far, zeros as holes; the download continues at its end
PART.json     the public part of the URL, a digest of the whole URL, and the validator (RFC 9110, 8.8) and full length
              that belong to these bytes; after an interruption also their number and sha256

If the digest of the file is known, only the digest decides whether a file is the expected one. Lengths and versions
that a server sends are not trusted. Without a digest, a download continues only if the bytes of the first part are
unchanged on this disk, and the validator of the second part is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from kimbox import __version__
from kimbox.errors import ImageError, KimboxError
from kimbox.files import CHUNK_BYTES, is_full, need_space, read_json, size_words, write_json
from kimbox.log import log
from kimbox.sparse import write_sparse
from kimbox.transfer import address, connection
from kimbox.transfer.address import Login, public_url, url_error
from kimbox.transfer.connection import Deadline

#: Maximum size of a download for which the caller gives no limit, in bytes.
MAX_BYTES = 1 << 40

#: Timeout for connecting, for the head of a response, and for each DRIP_BYTES of its body, in seconds.
STALL_S = 30.0

#: Minimum progress in STALL_S, and in one attempt, in bytes. Without it, a server that sends single bytes would block
#: kimbox.
DRIP_BYTES = 16 << 10

#: Pauses before the next attempts, in seconds. After an attempt that received DRIP_BYTES they start from the first.
PAUSES_S = (1.0, 2.0, 4.0, 8.0)

#: Maximum length of a validator that is sent back. A header line may have 64 KiB.
MAX_VALIDATOR_CHARACTERS = 500

#: Time between two reports of progress, in seconds.
REPORT_S = 1.0

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")


class _RetryError(Exception):
    """This attempt failed; another one may continue after the bytes received so far.

    `reason` is `stalled` (no progress within STALL_S), `connection-lost`, `wrong-range` or `status`. `status` is the
    HTTP status code, if the server sent an error.
    """

    def __init__(
        self, message: str, reason: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.headers = headers or {}


def fetch(
    url: str, part: Path, expected: str | None, *, limit_bytes: int | None = None, login: Login | None = None
) -> str:
    """Downloads the file at `url` to `part` and returns its sha256 as a hex digest.

    `expected`: the digest that the file must have; None if it is not known. `limit_bytes`: maximum size; None for
    MAX_BYTES. `login`: from `address.take`, which also removes user name and password from the URL.

    The bytes received so far stay for the next call, which continues after them, unless the digest of the complete file
    is wrong. A complete file stays in `part`, too.

    Raises ImageError: `checksum-mismatch`, `file-too-large`, `bad-url`, `server-unreachable`, `download-failed`,
    `no-space`. Raises KimboxError (`no-space`) before the download if the size is known and there is too little space.
    """
    for is_last in (False, True):
        part.touch()
        with part.open("r+b") as file:
            transfer = _Transfer(url, part, file, expected, limit_bytes or MAX_BYTES, login)
            try:
                _download(transfer)
            finally:
                transfer.keep()
            actual = transfer.digest.hexdigest()
        if expected in (actual, None):
            return actual
        discard(part)
        if is_last or not transfer.is_resumed:
            raise url_error(
                url,
                f"the image at {public_url(url)} has another digest than expected:\n"
                f"  expected: sha256:{expected}\n  received: sha256:{actual}",
                code="checksum-mismatch",
                hint="the image was changed, or the expected digest is wrong",
                expected=f"sha256:{expected}",
                actual=f"sha256:{actual}",
            )
        log.info("the parts from two attempts do not match: downloading the image from the beginning")
    raise AssertionError("the last attempt returns or raises")


def discard(part: Path) -> None:
    """Removes a download and its PART.json."""
    part.unlink(missing_ok=True)
    state_file(part).unlink(missing_ok=True)


def identity(url: str) -> str:
    """A digest by which a URL is recognized. The URL itself may contain a token, and is not stored."""
    return hashlib.sha256(os.fsencode(url)).hexdigest()


def state_file(part: Path) -> Path:
    """PART.json of a download."""
    return part.with_name(f"{part.name}.json")


class _Transfer:
    """A download in progress: the file, the number of bytes received, and their digest."""

    def __init__(
        self, url: str, part: Path, file: IO[bytes], expected: str | None, limit_bytes: int, login: Login | None
    ) -> None:
        self.url, self.part, self.file, self.expected, self.limit_bytes = url, part, file, expected, limit_bytes
        self.login = login
        self.digest = hashlib.sha256()
        self.position = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.is_resumed = False
        #: Whether the server can send a part of the file, as far as it is known.
        self.has_ranges = True
        self._load()

    def _load(self) -> None:
        """Reads the bytes that an earlier call left, and their PART.json. Discards them if they cannot be used."""
        if self.part.stat().st_size:
            log.now("reading the part that was downloaded before")
        while piece := self.file.read(CHUNK_BYTES):
            self.digest.update(piece)
            self.position += len(piece)
        try:
            state = read_json(state_file(self.part))
        except (OSError, KimboxError):
            state = {}
        total, validator = state.get("total"), state.get("validator")
        self.total = total if isinstance(total, int) else None
        if state.get("url") == identity(self.url) and isinstance(validator, str):
            self.validator = validator
        received = (state.get("received_bytes"), state.get("received_sha256"))
        is_intact = self.validator is not None and received == (self.position, self.digest.hexdigest())
        if self.position and self.expected is None and not is_intact:
            self.restart()

    def keep(self) -> bool:
        """Makes the received bytes durable for the next call. Returns whether the next call continues after them."""
        try:
            self.file.flush()
            self.file.truncate(self.position)
            os.fsync(self.file.fileno())
            self._write_state({"received_bytes": self.position, "received_sha256": self.digest.hexdigest()})
        except OSError:  # no space: without the state, the next call needs a digest to continue
            return bool(self.position and self.has_ranges and self.expected)
        return bool(self.position and self.has_ranges and (self.expected or self.validator))

    def _write_state(self, received: Mapping[str, int | str]) -> None:
        """Writes PART.json."""
        state = {"url": identity(self.url), "location": public_url(self.url), "total": self.total, **received}
        write_json(state_file(self.part), state | {"validator": self.validator}, mode=0o600)

    @property
    def is_complete(self) -> bool:
        """Whether the bytes received so far are the expected file."""
        return self.digest.hexdigest() == self.expected

    def request(self) -> urllib.request.Request:
        """The request for the missing bytes."""
        headers = {"User-Agent": f"kimbox/{__version__}", "Accept-Encoding": "identity"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if self.validator:
                headers["If-Range"] = self.validator
        return connection.request(self.url, headers, self.login)

    def restart(self) -> None:
        """Discards all received bytes."""
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.position, self.total, self.validator, self.is_resumed = 0, None, None, False

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Reads the head of a response: which bytes follow, and the full length. Raises ImageError or _RetryError."""
        tag = headers.get("ETag", "")
        validator = tag if tag.startswith('"') else headers.get("Last-Modified")
        if status == 206 and self.position:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            total = int(match[2]) if match and match[2] != "*" else None
            if not match or match[1] != str(self.position) or (self.total and total and self.total != total):
                self.restart()
                raise _RetryError("the server sent another part of the file than requested", "wrong-range")
            if self.expected is None and not self._is_same(validator):
                self.has_ranges = False
                self.restart()
                raise _RetryError("the file on the server has changed", "wrong-range")
            self.total = total or self.total
            self.is_resumed = True
        elif status == 200:
            is_ignored = bool(self.position) and self._is_same(validator)
            self.has_ranges &= not is_ignored and headers.get("Accept-Ranges", "").lower() != "none"
            self.restart()
            length = headers.get("Content-Length", "")
            self.total = int(length) if _LENGTH.fullmatch(length) else None
        else:
            message = f"{public_url(self.url)}: the server answered with status {status}"
            raise url_error(self.url, message, code="download-failed", status=str(status))
        if self.total is not None and self.total > self.limit_bytes:
            raise self._too_large(size_words(self.total))
        need_space(self.part.parent, (self.total or self.position) - self.position, "the image")
        self.validator = validator if validator and len(validator) <= MAX_VALIDATOR_CHARACTERS else None
        self._write_state({})

    def _is_same(self, validator: str | None) -> bool:
        """Whether a part with this validator belongs to the bytes received so far. With If-Range, only ETag is sent."""
        return validator == self.validator or (validator is None and not (self.validator or "").startswith('"'))

    def add(self, piece: bytes) -> None:
        """Appends received bytes. Raises ImageError if the file becomes larger than the limit."""
        if self.position + len(piece) > self.limit_bytes:
            raise self._too_large(f"at least {size_words(self.position + len(piece))}")
        self.file.seek(self.position)
        write_sparse(self.file, piece)
        self.file.flush()  # a full disk is reported here, before the piece counts as received
        self.digest.update(piece)
        self.position += len(piece)

    def _too_large(self, size: str) -> ImageError:
        """The error of a file that exceeds the limit; `size` is its size as text."""
        limit = size_words(self.limit_bytes)
        message = f"the file at {public_url(self.url)} is too large: {size}, the limit is {limit}"
        return url_error(self.url, message, code="file-too-large", received_bytes=str(self.position))


def _download(transfer: _Transfer) -> None:
    """Receives the whole file.

    Raises ImageError if several attempts in a row do not get DRIP_BYTES further than every attempt before. Bytes that
    are received again do not count, or a server that breaks off at the same place could block kimbox.
    """
    failures, furthest = 0, transfer.position
    while not transfer.is_complete:
        try:
            _receive(transfer)
            return
        except _RetryError as error:
            if transfer.position - furthest >= DRIP_BYTES:
                failures = 0
            furthest = max(furthest, transfer.position)
            if failures == len(PAUSES_S):
                raise _download_error(transfer, error) from None
            log.now(f"{error}; retrying")
            time.sleep(connection.pause_s(error.headers, PAUSES_S[failures]))
            failures += 1


def _download_error(transfer: _Transfer, error: _RetryError) -> ImageError:
    """The error of a download after the last attempt, which failed with `error`."""
    fields = {"reason": error.reason, "received_bytes": str(transfer.position)}
    if error.status is not None:
        fields["status"] = str(error.status)
    hint = f"run the same command again: it goes on after {size_words(transfer.position)}" if transfer.keep() else None
    message = f"the image at {public_url(transfer.url)} could not be fetched: {error}"
    return url_error(transfer.url, message, code="download-failed", hint=hint, **fields)


def _receive(transfer: _Transfer) -> None:
    """Sends one request and reads its response.

    Raises _RetryError if it ends too early, ImageError if another attempt would fail, too.
    """
    deadline = Deadline(STALL_S)
    try:
        director = connection.opener(deadline, transfer.login, has_digest=transfer.expected is not None)
        answer = director.open(transfer.request(), timeout=STALL_S)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            _check_error_status(transfer, error)
        return
    except urllib.error.URLError as error:
        raise _error_for(transfer, error.reason) from None
    except (ValueError, http.client.InvalidURL):  # such as a host name with an empty label
        message = f"{public_url(transfer.url)} is not a valid URL"
        raise url_error(transfer.url, message, code="bad-url") from None
    except (OSError, http.client.HTTPException) as error:
        raise _error_for(transfer, error) from None
    with answer:
        transfer.begin(answer.status, answer.headers)
        _receive_body(answer, transfer, deadline)
    if transfer.total is not None and transfer.position < transfer.total and not transfer.is_complete:
        message = f"the connection ended after {transfer.position} of {transfer.total} bytes"
        raise _RetryError(message, "connection-lost")


def _receive_body(answer: http.client.HTTPResponse, transfer: _Transfer, deadline: Deadline) -> None:
    """Receives the body of a response. Raises _RetryError if the server sends fewer than DRIP_BYTES in STALL_S."""
    started = reported = time.monotonic()
    first_position = checked_position = transfer.position
    deadline.postpone()
    while piece := _read(answer):
        try:
            transfer.add(piece)
        except OSError as error:
            if not is_full(error):
                raise
            promise = ": it continues the download" if transfer.keep() else ""
            raise ImageError(
                f"no space is left in {transfer.part.parent}",
                code="no-space",
                hint=f"free some space, then run the same command again{promise}",
                fields={"path": str(transfer.part.parent)},
            ) from None
        if transfer.position - checked_position >= DRIP_BYTES:
            checked_position = transfer.position
            deadline.postpone()
        now = time.monotonic()
        if now - reported >= REPORT_S:
            reported = now
            rate = size_words((transfer.position - first_position) / (now - started))
            total = f" of {size_words(transfer.total)}" if transfer.total else ""
            log.now(f"{size_words(transfer.position)}{total}, {rate}/s")


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes of a response, at least one; empty at its end."""
    try:
        return answer.read1(CHUNK_BYTES)
    except TimeoutError:
        message = f"the server sent fewer than {size_words(DRIP_BYTES)} in {STALL_S:g} s"
        raise _RetryError(message, "stalled") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _RetryError(f"the connection was lost ({error or type(error).__name__})", "connection-lost") from None


def _check_error_status(transfer: _Transfer, error: urllib.error.HTTPError) -> None:
    """Returns if an error status means that the file is complete (416); else raises _RetryError or ImageError."""
    where = public_url(transfer.url)
    if error.code == 416 and transfer.position:
        match = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
        if match and match[2] == str(transfer.position):
            transfer.is_resumed = True
            return
        transfer.restart()
        raise _RetryError("the file on the server is shorter than the part that was downloaded", "wrong-range")
    if error.code in connection.TRANSIENT:
        message = f"the server answered with {error.code} {connection.reason_of(error)}"
        raise _RetryError(message, "status", status=error.code, headers=dict(error.headers))
    hint = None
    if 300 <= error.code < 400:
        message = f"{where} redirects more than {connection.MAX_REDIRECTS} times, or to a URL that is not http or https"
    else:
        message = f"{where}: the server answered with {error.code} {connection.reason_of(error)}"
        hint = "check the URL (in a spec: `image: location:`)"
    if error.code == 401:
        hint = address.login_hint(transfer.url)
    raise url_error(transfer.url, message, code="download-failed", hint=hint, status=str(error.code))


def _error_for(transfer: _Transfer, reason: object) -> Exception:
    """The error for a request without a response: _RetryError, or an ImageError if another attempt would fail, too."""
    where = urlsplit(transfer.url).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        message = f"the certificate of {where} is not valid: {reason.verify_message}"
        hint = "to trust other certificates, set SSL_CERT_FILE to a file that contains them"
        return url_error(transfer.url, message, code="server-unreachable", hint=hint, server=where)
    if isinstance(reason, ConnectionRefusedError | socket.gaierror) and not transfer.position:
        message = f"{where} cannot be reached: {reason.strerror}"
        hint = "check the URL (in a spec: `image: location:`) and the proxy settings (https_proxy)"
        return url_error(transfer.url, message, code="server-unreachable", hint=hint, server=where)
    if isinstance(reason, TimeoutError):
        return _RetryError(f"{where} did not answer within {STALL_S:g} s", "stalled")
    return _RetryError(f"the connection to {where} was lost ({reason or type(reason).__name__})", "connection-lost")
