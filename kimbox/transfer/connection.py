"""HTTP requests whose server is untrusted: every wait has a deadline, redirects are limited, no body is read unasked.

The timeout of http.client starts again with each byte. A server that sends one header byte a second, or answers
`100 Continue` without end, would block it forever. Here a stream with one deadline reads all bytes of a response.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import quote, urlsplit

from kimbox.errors import ImageError
from kimbox.transfer import address
from kimbox.transfer.address import Login, public_url, url_error

#: Maximum number of redirects for one request.
MAX_REDIRECTS = 5

#: Maximum length of a server's text in a message.
MAX_REASON_CHARACTERS = 200

#: Characters that stay as they are in a URL; others (letters beyond ASCII) are percent-encoded.
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"

#: Status codes after which another attempt may succeed.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

#: The longest pause that a server can ask for (Retry-After), in seconds.
MAX_PAUSE_S = 60.0


class Deadline:
    """The time at which a request ends without a result. Progress postpones it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end_s = 0.0
        self.postpone()

    def postpone(self) -> None:
        """Gives the server the whole timeout again."""
        self._end_s = time.monotonic() + self._timeout_s

    def remaining_s(self) -> float:
        """The time that remains, in seconds. Raises TimeoutError if there is none."""
        remaining_s = self._end_s - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the deadline has passed")
        return remaining_s


class _Stream(io.RawIOBase):
    """The bytes of a socket up to a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._socket, self._deadline = sock, deadline
        self._bytes = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._deadline.remaining_s())
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        self._bytes.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that is read up to a deadline: status, headers, body and trailers."""

    def __init__(self, deadline: Deadline, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        plain, self.fp = self.fp, io.BufferedReader(_Stream(sock, deadline))
        plain.close()


class _Bounded(urllib.request.AbstractHTTPHandler):
    """Makes the responses of a handler end at a deadline."""

    deadline: Deadline

    def do_open(self, http_class: Any, req: urllib.request.Request, **http_conn_args: Any) -> Any:
        def connect(host: str, **kwargs: Any) -> http.client.HTTPConnection:
            connection: http.client.HTTPConnection = http_class(host, **kwargs)
            connection.response_class = functools.partial(_Response, self.deadline)  # type: ignore[assignment]
            return connection

        return super().do_open(connect, req, **http_conn_args)


class _Http(_Bounded, urllib.request.HTTPHandler):
    pass


class _Https(_Bounded, urllib.request.HTTPSHandler):
    pass


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows up to MAX_REDIRECTS redirects, to http and https only.

    Follows one from https to http only if `has_digest`: else nothing would show that the file was changed on the way.
    """

    max_redirections = MAX_REDIRECTS

    def __init__(self, deadline: Deadline, login: Login | None, *, has_digest: bool) -> None:
        self.deadline, self.login, self.has_digest = deadline, login, has_digest

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        """Follows a redirect. Raises ImageError (`bad-url`) if its target is not a URL."""
        fp.close()  # urllib would read the whole body into memory
        self.deadline.postpone()
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except (ValueError, http.client.InvalidURL):  # `http://[::1`, a label of 70 characters
            raise self._refused(req, headers.get("Location", ""), "is not a valid URL") from None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to the new URL. Raises ImageError (`bad-url`) for another scheme, or a URL with a user name."""
        parts = urlsplit(newurl)
        scheme = parts.scheme
        if scheme not in ("http", "https"):
            raise self._refused(req, newurl, "is not an http or https URL")
        if "@" in parts.netloc:
            raise self._refused(req, newurl, "contains a user name")
        if not parts.hostname or parts.port == 0:  # `port` raises ValueError for an invalid one
            raise self._refused(req, newurl, "is not a valid URL")
        if scheme == "http" and req.type == "https" and not self.has_digest:
            hint = "pass the digest of the file with --digest (in a spec: `image: digest:`)"
            raise self._refused(
                req, newurl, "is not encrypted, and no digest shows that the file is the right one", hint
            )
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new:
            new.remove_header("Proxy-authorization")  # the new host may be one that needs no proxy
            _authorize(new, self.login)
        return new

    def _refused(self, req: urllib.request.Request, target: str, reason: str, hint: str | None = None) -> ImageError:
        message = f"{public_url(req.full_url)} redirects to {public_url(target)[:200]}, which {reason}"
        return url_error(req.full_url, message, code="bad-url", hint=hint)


def request(url: str, headers: Mapping[str, str], login: Login | None) -> urllib.request.Request:
    """The request for a URL. `login`: that of the URL that the user passed; only its server gets it."""
    made = urllib.request.Request(quote(url, safe=_URL_SAFE), headers=dict(headers))  # noqa: S310 - `opener` allows http and https only
    _authorize(made, login)
    return made


def _authorize(made: urllib.request.Request, login: Login | None) -> None:
    """Adds the login of the server. As an "unredirected" header, because urllib copies others to every redirect."""
    if own := address.login_for(made.full_url, login):
        made.add_unredirected_header("Authorization", own.header)


def reason_of(error: urllib.error.HTTPError) -> str:
    """The reason in the status line of an answer, shortened: a line may have 64 KiB."""
    return str(error.reason)[:MAX_REASON_CHARACTERS]


def pause_s(headers: Mapping[str, str], planned_s: float) -> float:
    """Returns the pause before the next attempt, in seconds: at least `planned_s`.

    It is longer if the server asks for that in `headers`, up to MAX_PAUSE_S. Only seconds in Retry-After are obeyed,
    and no date (RFC 9110, 10.2.3): the clocks may differ.
    """
    asked = headers.get("Retry-After", "").strip()
    is_number = asked.isascii() and asked.isdigit() and len(asked) < 10
    return max(planned_s, min(float(asked), MAX_PAUSE_S)) if is_number else planned_s


def opener(deadline: Deadline, login: Login | None, *, has_digest: bool) -> urllib.request.OpenerDirector:
    """An opener for http and https URLs only, with the proxies and certificates of the environment.

    `login`: as for `request`.
    `has_digest`: whether the caller knows the digest of the file. Without it, no redirect leads from https to http.
    """
    director = urllib.request.OpenerDirector()
    bounded = (_Http(), _Https())
    for handler in bounded:
        handler.deadline = deadline
    for other in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        *bounded,
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(deadline, login, has_digest=has_digest),
        urllib.request.HTTPErrorProcessor(),
    ):
        director.add_handler(other)
    return director
