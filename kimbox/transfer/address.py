"""URLs of downloads, and the user names and passwords for their servers.

A URL that the user passes may contain a user name and a password (RFC 3986, 3.2.1). `take` separates them from it, so
that no record, lock, message or file gets them. Without a password in the URL, the entry of the host in ~/.netrc is
used. The name and password go only to the server of that URL.
"""

from __future__ import annotations

import base64
import netrc
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit, urlunsplit

import attrs

from kimbox.errors import ImageError, KimboxError, UsageError
from kimbox.files import read_bounded
from kimbox.log import log

#: Maximum size of ~/.netrc, in bytes.
MAX_NETRC_BYTES = 1 << 20

_DEFAULT_PORTS = {"http": 80, "https": 443}


@attrs.frozen
class Login:
    """A user name and a password, and the only server that gets them."""

    #: Scheme, host and port of the server.
    origin: tuple[str, str, int]
    user: bytes = attrs.field(repr=False)
    password: bytes = attrs.field(repr=False)

    @property
    def header(self) -> str:
        """The value of the header `Authorization` (RFC 7617)."""
        return "Basic " + base64.b64encode(self.user + b":" + self.password).decode()


def public_url(url: str) -> str:
    """The URL for messages and records: without user name, password, query and fragment, which may be secret."""
    scheme, separator, rest = url.partition("://")
    if not separator:  # a path
        return url
    host, slash, path = rest.partition("#")[0].partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def url_error(url: str, message: str, *, code: str, hint: str | None = None, **fields: str) -> ImageError:
    """An ImageError about a URL: the field `url` has the public part of it."""
    return ImageError(message, code=code, hint=hint, fields={"url": public_url(url), **fields})


def take(url: str) -> tuple[str, Login | None]:
    """Splits a URL that the user passed into the URL without user name and password, and the login for its server.

    The login is None if neither the URL nor ~/.netrc has one. Raises ImageError (`bad-url`) if the URL is not valid,
    and the errors of `netrc_entry`, except those of a faulty file.
    """
    parts, origin = _split(url)
    user_info, _, host = parts.netloc.rpartition("@")
    clean = urlunsplit(parts._replace(netloc=host))
    user, colon, password = user_info.partition(":")
    if b":" in unquote_to_bytes(user):
        raise url_error(url, "the user name in the URL contains a colon", code="bad-url")
    if colon:
        return clean, Login(origin, unquote_to_bytes(user), unquote_to_bytes(password))
    entry = _entry(origin[1])
    if user and (entry is None or entry[0].encode() != unquote_to_bytes(user)):
        return clean, Login(origin, unquote_to_bytes(user), b"")
    return clean, Login(origin, entry[0].encode(), entry[1].encode()) if entry else None


def login_for(url: str, login: Login | None) -> Login | None:
    """The login for a request to `url`, which may be another server than the one that the user named.

    `login`: that of the URL that the user passed. Another server gets its own entry of ~/.netrc, and only by https: a
    redirect or a catalog must not be able to send a password over the network in plain text.
    """
    _, origin = _split(url)
    if login and login.origin == origin:
        return login
    entry = _entry(origin[1]) if origin[0] == "https" else None
    return Login(origin, entry[0].encode(), entry[1].encode()) if entry else None


def netrc_entry(host: str) -> tuple[str, str] | None:
    """User name and password of a host in ~/.netrc; None if the file has none, or does not exist.

    The entry `default` is not used, because any server would get its password. Raises UsageError: `file-not-private`
    if the file may be read by other users, `bad-credentials` if it is invalid, `file-unreadable`.
    """
    path = _netrc_path()
    fields = {"path": str(path)}
    try:
        read_bounded(path, limit_bytes=MAX_NETRC_BYTES)  # `netrc` would wait for a FIFO, and has no limit
        entry = netrc.netrc(path).hosts.get(host)
        if not entry or not entry[0] or not entry[2]:
            return None
        is_private = not path.stat().st_mode & 0o077
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", code="file-unreadable", fields=fields) from None
    except netrc.NetrcParseError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}", code="bad-credentials", fields=fields) from None
    except (KimboxError, UnicodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", code="bad-credentials", fields=fields) from None
    if not is_private:
        raise UsageError(
            f"{path} may be read by other users", code="file-not-private", hint=f"chmod 600 {path}", fields=fields
        )
    return entry[0], entry[2]


def login_hint(url: str) -> str:
    """The hint for a server that requires a user name and a password."""
    host = _split(url)[1][1]
    return f"write `machine {host} login NAME password PASSWORD` into {_netrc_path()}, and run chmod 600 on that file"


def _netrc_path() -> Path:
    return Path("~/.netrc").expanduser()


def _entry(host: str) -> tuple[str, str] | None:
    """The entry of a host as `netrc_entry` returns it. A faulty file is reported, and counts as empty."""
    try:
        return netrc_entry(host)
    except UsageError as error:
        if error.code == "file-not-private":
            raise
        log.warn(f"{error.message}; continuing without this file")
        return None


def _split(url: str) -> tuple[SplitResult, tuple[str, str, int]]:
    """Returns the parts of a URL, and its scheme, host and port. Raises ImageError (`bad-url`), without the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        if parts.scheme in _DEFAULT_PORTS and not parts.hostname:
            raise ValueError
    except ValueError:
        raise ImageError(
            "the URL does not have a valid host and port",
            code="bad-url",
            hint="in a user name or password, write / as %2F, ? as %3F, # as %23 and % as %25",
        ) from None
    return parts, (parts.scheme, (parts.hostname or "").lower(), port)
