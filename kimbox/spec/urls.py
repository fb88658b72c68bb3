"""The rules for URLs of repositories, mirrors and images. URLs with credentials or commands are refused."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, unquote, urlsplit

from kimbox.spec.model import SETUP
from kimbox.spec.nodes import Fault, shown

#: Git transports that only fetch. Others (`ext::`, and each git-remote-* helper on PATH) run commands of the URL.
GIT_SCHEMES = ("https", "http", "ssh", "git", "file")

#: Allowed schemes in the URL of a package mirror.
MIRROR_SCHEMES = ("https", "http", "file")

#: Allowed schemes in the URL of an image.
IMAGE_SCHEMES = ("https", "http")

#: Allowed schemes in the URL of a store of saves.
STORE_SCHEMES = ("file", "sftp", "https", "http", "oci", "s3", "gs", "az")

#: Allowed schemes in the URL of a mail server.
MAIL_SCHEMES = ("smtp", "smtps")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TRANSPORT = re.compile(r"[A-Za-z0-9+.-]*::")
_SCP = re.compile(r"(?:(?P<user>[^@/:]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:@\[\]]+):(?P<path>.*)")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|[0-9A-Fa-f.]*+:[0-9A-Fa-f:.]*+")
_NUMERIC_HOST = re.compile(r"(?:0[xX][0-9a-fA-F]+|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]+|[0-9]+))*\.?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_PLAIN = re.compile(r"[\x00-\x20\x7f\\]")
_REF_QUERY = re.compile(r"(ref|branch|tag|rev|commit)=[^&]*")
_USER_PART = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")

#: Maximum length of a URL.
MAX_URL_CHARACTERS = 2000

_NO_SECRETS = "keep credentials in ~/.netrc or a git credential helper, and never in a spec"


def is_folder(text: str) -> bool:
    """Whether the `url` of a repository is a folder beside the spec."""
    return not (_SCHEME.match(text) or _TRANSPORT.match(text) or _SCP.fullmatch(text))


def repository(text: str) -> str:
    """The `url` of a repository: a URL with a safe transport, the short form of ssh, or a folder (not checked here)."""
    if _TRANSPORT.match(text):
        raise Fault(f"{shown(text)} names a transport that runs commands", "use https, ssh or git", code="bad-url")
    _check_characters(text, "a repository URL")
    if _SCHEME.match(text):
        return _git_url(text)
    if match := _SCP.fullmatch(text):
        if not _HOST.fullmatch(match["host"].strip("[]")) or not match["path"] or match["path"].startswith("-"):
            raise Fault(f"{shown(text)} is not user@host:path", code="bad-url")
        if match["user"] is not None and not _USER.fullmatch(match["user"]):
            raise Fault(f"{shown(text)} is not user@host:path", code="bad-url")
    return text


def mirror(text: str) -> str:
    """The URL of a package mirror."""
    _check_characters(text, "the URL of a mirror")
    parts = _split(text, MIRROR_SCHEMES)
    if any(character in text for character in "[]\"'#|"):
        raise Fault(f"{shown(text)} is not a URL that apt can use", code="bad-url")
    _refuse_user(text, parts)
    return text


def image(text: str) -> str:
    """The location of an image: an http(s) URL, or a path."""
    _check_characters(text, "the location of an image")
    if _SCHEME.match(text):
        _refuse_user(text, _split(text, IMAGE_SCHEMES))
    return text


def store(text: str) -> str:
    """The URL of a store of saves, or the absolute path of a folder. `{name}` may be in its path."""
    _check_characters(text, "the URL of a store")
    if text.startswith("/"):
        return text
    parts = _split(text, STORE_SCHEMES)
    if parts.query or parts.fragment:
        raise Fault("the URL of a store cannot have a query (?) or a fragment (#)", _NO_SECRETS, code="bad-url")
    _check_user(text, parts)
    return text


def why_not_followed(name: str, url: str, ref: str, *, is_verified: bool) -> str | None:
    """Returns why a box cannot follow the branch of a repository; None if it can.

    Only the server knows whether the ref is a branch and whether the URL needs a password: the box reports that later.
    """
    if name != SETUP:
        return f"a box can only follow the repository {SETUP}"
    if not url.startswith(("https://", "http://", "git://")):
        return (
            "a box has no credentials and none of this machine's folders: it can only follow https, http and git URLs"
        )
    if _COMMIT.fullmatch(ref) or ref.startswith("refs/tags/"):
        return "a box can only follow a branch: a commit or a tag does not move"
    if is_verified:
        return "a box does not verify signatures: the commits that it fetches would not be verified"
    return None


def is_url(text: str) -> bool:
    """Whether a location is a URL, and not a path."""
    return bool(_SCHEME.match(text))


def host_of(url: str) -> str | None:
    """The host in the URL of a repository, in small letters; None for a folder of this machine."""
    if _SCHEME.match(url):
        return urlsplit(url).hostname or None
    match = _SCP.fullmatch(url)
    return match["host"].strip("[]").lower() if match else None


def uses_ssh(url: str) -> bool:
    """Whether git reaches a repository with ssh, and so with the user's keys."""
    return url.startswith("ssh:") or not _SCHEME.match(url)


def is_inside_network(host: str) -> bool:
    """Whether a host is this machine or one of a private network. A name whose address is one cannot be detected."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:  # 2130706433 and 0x7f.1 are addresses for libc
        return bool(_NUMERIC_HOST.fullmatch(host)) or host.rstrip(".").endswith(("localhost", ".local", ".internal"))


def mail_server(text: str) -> str:
    """The URL of an SMTP server: smtp://HOST:PORT (with TLS if the server has it), or smtps://HOST."""
    _check_characters(text, "the URL of a mail server")
    parts = _split(text, MAIL_SCHEMES)
    _refuse_user(text, parts)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise Fault(f"{shown(text)} has more than a host and a port", code="bad-url")
    return text


def local_folder(url: str) -> str | None:
    """The absolute path in a `file:` URL, or None for another URL."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" else None


def is_plain_http(text: str) -> bool:
    """Whether a location is a URL of http without encryption. The scheme may have capital letters."""
    return text[:5].lower() == "http:"


def _check_characters(text: str, kind: str) -> None:
    """Raises Fault for an empty text, for an option, and for characters that no URL has. `kind` is for messages."""
    if not text:
        raise Fault(f"{kind} cannot be empty", code="empty-value")
    if text.startswith("-"):
        message = f"{shown(text)} starts with a hyphen, so that programs would read it as an option"
        raise Fault(message, code="bad-url")
    if _NOT_PLAIN.search(text) or len(text) > MAX_URL_CHARACTERS:
        raise Fault(
            f"{kind} cannot contain spaces, backslashes or control characters, and has at most {MAX_URL_CHARACTERS} "
            "characters",
            code="bad-url",
        )


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult:
    """Returns the parts of a URL. Raises Fault for a scheme that is not in `schemes`, and for a URL without a host."""
    names = ", ".join(schemes[:-1]) + f" or {schemes[-1]}"
    match = _SCHEME.match(text)
    if not match:
        raise Fault(f"{shown(text)} is not a URL that starts with {names}", code="bad-url")
    if match[1] not in schemes:
        raise Fault(f"{match[1][:30]}:// is not supported here", f"use {names}", code="bad-url")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Fault(f"{shown(_without_user(text))} is not a valid URL", code="bad-url") from None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            message = f"{shown(text)} does not name a folder of this machine"
            raise Fault(message, "write file:///absolute/path", code="bad-url")
    elif not parts.hostname or not _HOST.fullmatch(parts.hostname) or port == 0:
        raise Fault(f"{shown(_without_user(text))} does not name a host", code="bad-url")
    return parts


def _git_url(text: str) -> str:
    parts = _split(text, GIT_SCHEMES)
    if parts.path in ("", "/"):
        raise Fault(f"{shown(_without_user(text))} names a host but no repository", code="bad-url")
    if parts.query or parts.fragment:
        is_ref = parts.fragment or _REF_QUERY.fullmatch(parts.query)
        hint = "use ref: for a branch, a tag or a commit" if is_ref else _NO_SECRETS
        raise Fault("a repository URL cannot have a query (?) or a fragment (#)", hint, code="bad-url")
    if parts.path.startswith("/-") or parts.path.startswith("-"):
        message = f"{shown(_without_user(text))} has a path that programs would read as an option"
        raise Fault(message, code="bad-url")
    _check_user(text, parts)
    return text


def _check_user(text: str, parts: SplitResult) -> None:
    """Raises Fault for a password, for a user that is not valid, and for any user if the scheme does not use ssh."""
    if parts.scheme not in ("ssh", "sftp"):
        _refuse_user(text, parts)
        return
    if parts.password is not None:
        raise Fault("this URL contains a password", _NO_SECRETS, code="secret-in-url")
    if "@" in parts.netloc and not _USER.fullmatch(parts.username or ""):
        raise Fault(f"{shown(text)} does not name a valid user", code="bad-url")


def _refuse_user(text: str, parts: SplitResult) -> None:
    if "@" in parts.netloc:
        hint = f"write {_without_user(text)}; {_NO_SECRETS}"
        raise Fault("this URL contains a user name or password", hint, code="secret-in-url")


def _without_user(text: str) -> str:
    """Returns a URL without its user, password and query, so that no message repeats a secret."""
    return _USER_PART.sub(r"\1", text)[:200].partition("?")[0]
