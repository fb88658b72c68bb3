"""Where repositories, mirrors and images may come from. No secret and no command may hide in such a text."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from kimbox.spec.model import SETUP
from kimbox.spec.nodes import Fault, shown

#: Git transports that fetch and do nothing else. `ext::` and every helper on PATH would run what a URL says.
GIT_SCHEMES = ("https", "http", "ssh", "git", "file")

#: How a package mirror may be reached.
MIRROR_SCHEMES = ("https", "http", "file")

#: How an image may be reached.
IMAGE_SCHEMES = ("https", "http")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TRANSPORT = re.compile(r"[A-Za-z0-9+.-]*::")
_SCP = re.compile(r"(?:(?P<user>[^@/:]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:@\[\]]+):(?P<path>.*)")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|[0-9A-Fa-f.]*+:[0-9A-Fa-f:.]*+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_PLAIN = re.compile(r"[\x00-\x20\x7f\\]")
_USER_PART = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")

_NO_SECRETS = "credentials belong in ~/.netrc or a git credential helper, never in a spec"


def is_folder(text: str) -> bool:
    """Whether a repository's url means a folder beside the spec."""
    return not (_SCHEME.match(text) or _TRANSPORT.match(text) or _SCP.fullmatch(text))


def repository(text: str) -> str:
    """What git fetches from: a URL of a plain transport, the short form of ssh, or a folder (found by `paths`)."""
    if _TRANSPORT.match(text):
        raise Fault(f"{shown(text)} names a transport that runs commands", "use https, ssh or git")
    _plain_text(text, "a repository's url")
    if _SCHEME.match(text):
        return _git_url(text)
    if match := _SCP.fullmatch(text):
        if not _HOST.fullmatch(match["host"].strip("[]")) or not match["path"] or match["path"].startswith("-"):
            raise Fault(f"{shown(text)} is not user@host:path")
        if match["user"] is not None and not _USER.fullmatch(match["user"]):
            raise Fault(f"{shown(text)} is not user@host:path")
    return text


def mirror(text: str) -> str:
    """URL of a package mirror."""
    _plain_text(text, "a mirror")
    parts = _split(text, MIRROR_SCHEMES)
    if any(character in text for character in "[]\"'#|"):
        raise Fault(f"{shown(text)} is not a URL that apt can use")
    _refuse_user(text, parts)
    return text


def image(text: str) -> str:
    """Where an image is: an http(s) URL, or a path."""
    _plain_text(text, "an image's location")
    if _SCHEME.match(text):
        _refuse_user(text, _split(text, IMAGE_SCHEMES))
    return text


def why_not_followed(name: str, url: str, ref: str, *, is_verified: bool) -> str | None:
    """Why a box cannot take the newest commit of a repository's branch by itself, if so.

    Whether the ref is a branch, and the URL needs no password, only its server knows: the box tells when it asks.
    """
    if name != SETUP:
        return f"a box follows the repository {SETUP} alone"
    if not url.startswith(("https://", "http://", "git://")):
        return "a box has no credentials, and none of this machine's folders: it follows https, http and git URLs alone"
    if _COMMIT.fullmatch(ref) or ref.startswith("refs/tags/"):
        return "a box follows a branch: a commit or a tag does not move"
    if is_verified:
        return "a box does not verify signatures: what it fetches by itself would go unverified"
    return None


def is_url(text: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return bool(_SCHEME.match(text))


def _plain_text(text: str, what: str) -> None:
    if not text:
        raise Fault(f"{what} cannot be empty")
    if text.startswith("-"):
        raise Fault(f"{shown(text)} starts with a hyphen, so programs would take it for an option")
    if _NOT_PLAIN.search(text) or len(text) > 2000:
        raise Fault(f"{what} holds no spaces, backslashes or control characters, and is at most 2000 long")


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult:
    names = ", ".join(schemes[:-1]) + f" or {schemes[-1]}"
    match = _SCHEME.match(text)
    if not match:
        raise Fault(f"{shown(text)} is not a URL that starts with {names}")
    if match[1] not in schemes:
        raise Fault(f"{match[1][:30]}:// is not a way kimbox fetches", f"use {names}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Fault(f"{shown(_without_user(text))} is not a valid URL") from None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Fault(f"{shown(text)} does not name a folder of this machine", "write file:///absolute/path")
    elif not parts.hostname or not _HOST.fullmatch(parts.hostname) or port == 0:
        raise Fault(f"{shown(_without_user(text))} does not name a host")
    return parts


def _git_url(text: str) -> str:
    parts = _split(text, GIT_SCHEMES)
    if parts.path in ("", "/"):
        raise Fault(f"{shown(_without_user(text))} names a host but no repository")
    if parts.query or parts.fragment:
        raise Fault(
            "a repository's url has no ? and no # part", _NO_SECRETS if parts.query else "use ref: for a branch"
        )
    if parts.path.startswith("/-") or parts.path.startswith("-"):
        raise Fault(f"{shown(_without_user(text))} has a path that programs would take for an option")
    if parts.scheme == "ssh":
        if parts.password is not None:
            raise Fault("this url holds a password", _NO_SECRETS)
        if "@" in parts.netloc and not _USER.fullmatch(parts.username or ""):
            raise Fault(f"{shown(text)} does not name a valid user")
    else:
        _refuse_user(text, parts)
    return text


def _refuse_user(text: str, parts: SplitResult) -> None:
    if "@" in parts.netloc:
        raise Fault("this url holds a user name or password", f"write {_without_user(text)}: {_NO_SECRETS}")


def _without_user(text: str) -> str:
    """The URL without what stands before the @ of its host, so that no message repeats a secret."""
    return _USER_PART.sub(r"\1", text)[:200].partition("?")[0]
