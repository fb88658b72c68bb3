"""Takes a large file from an http(s) URL: resumed where it broke off, bounded, its sha256 computed on the way.

PART          what has come so far, holes as holes; its length is where to go on
PART.json     where it comes from: URL, validator (RFC 9110, 8.8) and full length

The digest is the judge: whatever a server claims of lengths and versions, only the wanted bytes are ever handed on.
"""

from __future__ import annotations

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
from urllib.parse import quote, urlsplit

from kimbox import __version__
from kimbox.errors import ImageError, KimboxError
from kimbox.files import CHUNK_BYTES, is_full, need_space, read_json, size_words, write_json, write_sparse
from kimbox.log import log

#: No image is larger.
MAX_BYTES = 1 << 40

#: Connecting, and any silence after it, may take this long.
STALL_S = 30.0

#: Fewer bytes than this in STALL_S, or in one try, count as nothing: a server that drips would hold kimbox for ever.
DRIP_BYTES = 16 << 10

#: Redirects followed for one request.
MAX_REDIRECTS = 5

#: Pauses before further tries; a try that brought DRIP_BYTES starts them anew.
PAUSES_S = (1.0, 2.0, 4.0, 8.0)

#: Between two reports of progress.
REPORT_S = 1.0

#: Answers that may be other in a moment.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")

#: What a URL may hold as it is; the rest (letters beyond ASCII) is percent-encoded.
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"


class _Again(Exception):
    """This try ended early; another may go on from there."""


def fetch(url: str, part: Path, wanted: str | None, *, limit_bytes: int | None = None) -> str:
    """Brings the file at `url` to `part`; `wanted` is the hex digest that it must have. Returns the one it has.

    What an earlier call left in `part` is used, unless no digest is wanted (None): nothing could judge the whole.
    Raises ImageError, for a file of more than `limit_bytes` (None: MAX_BYTES), too: what has come stays for the next
    call, but is removed where its digest is wrong.
    """
    if wanted is None:
        discard(part)
    for is_last in (False, True):
        part.touch()
        with part.open("r+b") as file:
            transfer = _Transfer(url, part, file, wanted, limit_bytes or MAX_BYTES)
            _bring(transfer)
            found = transfer.finish()
        if wanted in (found, None):
            return found
        discard(part)
        if is_last or not transfer.is_resumed:
            raise ImageError(
                f"the image at {plain(url)} is not the one that the spec names:\n"
                f"  the spec: sha256:{wanted}\n  the image: sha256:{found}",
                hint="it was changed, or the digest in the spec is wrong",
            )
        log.info("the pieces of two tries do not fit together: downloading the image anew")
    raise AssertionError("the last try returns or raises")


def discard(part: Path) -> None:
    """Removes a download."""
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def plain(url: str) -> str:
    """A URL without its query, which may hold a secret."""
    return url.partition("?")[0]


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


class _Transfer:
    """A download under way: the file, how far it is, and its digest up to there."""

    def __init__(self, url: str, part: Path, file: IO[bytes], wanted: str | None, limit_bytes: int) -> None:
        self.url, self.part, self.file, self.wanted, self.limit_bytes = url, part, file, wanted, limit_bytes
        self.digest = hashlib.sha256()
        self.position = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.is_resumed = False
        self._load()

    def _load(self) -> None:
        """Takes in what an earlier call left."""
        if self.part.stat().st_size:
            log.now("reading what came before")
        while piece := self.file.read(CHUNK_BYTES):
            self.digest.update(piece)
            self.position += len(piece)
        try:
            state = read_json(_state_file(self.part))
        except (OSError, KimboxError):
            return
        total, validator = state.get("total"), state.get("validator")
        self.total = total if isinstance(total, int) else None
        if state.get("url") == self.url and isinstance(validator, str):
            self.validator = validator

    @property
    def is_whole(self) -> bool:
        """Whether what is here is what is wanted."""
        return self.digest.hexdigest() == self.wanted

    def request(self) -> urllib.request.Request:
        """Asks for what is missing."""
        headers = {"User-Agent": f"kimbox/{__version__}", "Accept-Encoding": "identity"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if self.validator:
                headers["If-Range"] = self.validator
        return urllib.request.Request(quote(self.url, safe=_URL_SAFE), headers=headers)  # noqa: S310 - see _OPENER

    def restart(self) -> None:
        """Forgets what has come."""
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.position, self.total, self.validator, self.is_resumed = 0, None, None, False

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Takes an answer's head in: which bytes follow, and how many there are in all. Raises ImageError, _Again."""
        if status == 206 and self.position:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            total = int(match[2]) if match and match[2] != "*" else None
            if not match or match[1] != str(self.position) or (self.total and total and self.total != total):
                self.restart()
                raise _Again("the server went on with something else")
            self.total = total or self.total
            self.is_resumed = True
        elif status == 200:
            self.restart()
            length = headers.get("Content-Length", "")
            self.total = int(length) if _LENGTH.fullmatch(length) else None
        else:
            raise ImageError(f"{plain(self.url)}: the server answered with status {status}")
        if self.total is not None and self.total > self.limit_bytes:
            raise ImageError(f"what is at {plain(self.url)} is too large: {size_words(self.total)}")
        need_space(self.part.parent, (self.total or self.position) - self.position, "the image")
        tag = headers.get("ETag", "")
        self.validator = tag if tag.startswith('"') else headers.get("Last-Modified")
        write_json(_state_file(self.part), {"url": self.url, "total": self.total, "validator": self.validator})

    def add(self, piece: bytes) -> None:
        """Takes bytes in. Raises ImageError if they are too many or there is no room for them."""
        if self.position + len(piece) > self.limit_bytes:
            raise ImageError(f"what is at {plain(self.url)} has no end: more than {size_words(self.limit_bytes)}")
        self.digest.update(piece)
        self.file.seek(self.position)
        write_sparse(self.file, piece)
        self.position += len(piece)

    def finish(self) -> str:
        """Makes the file durable and as long as it is; returns its hex digest."""
        self.file.flush()
        self.file.truncate(self.position)
        os.fsync(self.file.fileno())
        return self.digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A few redirects, to http and https alone."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Where the redirect leads, refused if kimbox does not fetch from there."""
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ImageError(f"{plain(req.full_url)} leads to {plain(newurl)[:200]}, which is no http or https URL")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http and https only, through the proxies and with the certificates that the environment names."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _bring(transfer: _Transfer) -> None:
    """Receives until everything is here. Raises ImageError if several tries in a row bring next to nothing."""
    tries = 0
    opener = _opener()
    while not transfer.is_whole:
        before = transfer.position
        try:
            _receive(opener, transfer)
            return
        except _Again as error:
            if transfer.position - before >= DRIP_BYTES:
                tries = 0
            if tries == len(PAUSES_S):
                raise ImageError(
                    f"the image at {plain(transfer.url)} could not be fetched: {error}",
                    hint=f"run the same command again: it goes on after {size_words(transfer.position)}"
                    if transfer.position
                    else None,
                ) from None
            log.now(f"{error}; trying again")
            time.sleep(PAUSES_S[tries])
            tries += 1


def _receive(opener: urllib.request.OpenerDirector, transfer: _Transfer) -> None:
    """One request and its answer. Raises _Again if it ends too early, ImageError if there is no sense in another."""
    try:
        answer = opener.open(transfer.request(), timeout=STALL_S)
    except urllib.error.HTTPError as error:
        with error:
            _judge_status(transfer, error)
        return
    except urllib.error.URLError as error:
        raise _judge_failure(transfer, error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _judge_failure(transfer, error) from None
    with answer:
        transfer.begin(answer.status, answer.headers)
        _receive_body(answer, transfer)
    if transfer.total is not None and transfer.position < transfer.total and not transfer.is_whole:
        raise _Again(f"the connection ended after {transfer.position} of {transfer.total} bytes")


def _receive_body(answer: http.client.HTTPResponse, transfer: _Transfer) -> None:
    """Takes in what the server sends, and watches its pace."""
    started = reported = watched = time.monotonic()
    first = at_watch = transfer.position
    while piece := _read(answer):
        try:
            transfer.add(piece)
        except OSError as error:
            if not is_full(error):
                raise
            raise ImageError(
                f"no space is left in {transfer.part.parent}",
                hint="make room; the same command then goes on",
            ) from None
        now = time.monotonic()
        if now - reported >= REPORT_S:
            reported = now
            rate = size_words((transfer.position - first) / (now - started))
            total = f" of {size_words(transfer.total)}" if transfer.total else ""
            log.now(f"{size_words(transfer.position)}{total}, {rate}/s")
        if now - watched >= STALL_S:
            if transfer.position - at_watch < DRIP_BYTES:
                raise _Again(f"the server sent {transfer.position - at_watch} bytes in {STALL_S:.0f} s")
            watched, at_watch = now, transfer.position


def _read(answer: http.client.HTTPResponse) -> bytes:
    """What has come, at least a byte; nothing at the end."""
    try:
        return answer.read1(CHUNK_BYTES)
    except TimeoutError:
        raise _Again(f"the server sent nothing for {STALL_S:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"the connection broke ({error or type(error).__name__})") from None


def _judge_status(transfer: _Transfer, error: urllib.error.HTTPError) -> None:
    """What an answer that is no success means: all is here (returns), another try, or an ImageError."""
    where = plain(transfer.url)
    if error.code == 416 and transfer.position:
        match = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
        if match and match[2] == str(transfer.position):
            transfer.is_resumed = True
            return
        transfer.restart()
        raise _Again("the server has fewer bytes than have come already")
    if error.code in _PASSING:
        raise _Again(f"the server answered with {error.code} {error.reason}")
    if 300 <= error.code < 400:
        raise ImageError(f"{where} redirects without end, or to what is no http or https URL")
    raise ImageError(
        f"{where}: the server answered with {error.code} {error.reason}", hint="check image: location: in the spec"
    )


def _judge_failure(transfer: _Transfer, reason: object) -> Exception:
    """What a request without an answer means: another try, or, where nothing has come yet, an ImageError."""
    where = urlsplit(transfer.url).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = "SSL_CERT_FILE names a file with further certificates"
        return ImageError(f"the certificate of {where} is not valid: {reason.verify_message}", hint=hint)
    if isinstance(reason, ConnectionRefusedError | socket.gaierror) and not transfer.position:
        hint = "check image: location: in the spec, and the proxy settings (https_proxy)"
        return ImageError(f"{where} cannot be reached: {reason.strerror}", hint=hint)
    if isinstance(reason, TimeoutError):
        return _Again(f"{where} did not answer within {STALL_S:g} s")
    return _Again(f"the connection to {where} broke ({reason or type(reason).__name__})")
