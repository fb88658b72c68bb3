"""The apt sources that a box gets: those of its lock that it can reach, with the keys that they need.

A source that only this host reaches (a file, a CD, a server on this host) never becomes a source of a box.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

import attrs

from kimbox.errors import KimboxError
from kimbox.files import read_bounded
from kimbox.lock.apt import keys
from kimbox.lock.apt.sources import Source, bare

#: Methods of apt that every Debian and Ubuntu has, and that need nothing but a network.
METHODS = ("http", "https", "ftp", "mirror", "mirror+http", "mirror+https")

#: Prefix of the methods that read a list of mirrors from a file of this host (apt-transport-mirror(1)).
_MIRROR_FILES = ("mirror+file:", "mirror+copy:")

#: Maximum size of a list of mirrors, and of /etc/hosts, in bytes.
MAX_LIST_BYTES = 1 << 20

#: Folder of the keys in a box.
KEYS_DIR = "etc/apt/keyrings"

#: Name of a key file in a box: its sha256, shortened.
KEY_NAME = re.compile(r"kimbox-[0-9a-f]{16}\.asc")

#: What an entry in a list of mirrors without a priority has.
_NO_PRIORITY = 1 << 30


@attrs.frozen
class BoxSources:
    """The sources of a box."""

    #: Lines of sources.list(5), without credentials.
    lines: tuple[str, ...]
    #: Armored keys by file name; `lines` refer to them.
    keys: dict[str, str]
    #: Sources that only this host reaches.
    unreachable: tuple[Source, ...]
    #: Sources whose key is not known, because their Signed-By is a fingerprint.
    without_key: tuple[Source, ...]


def for_box(sources: Iterable[Source], distribution: str, hosts: Path = Path("/etc/hosts")) -> BoxSources:
    """The sources of a box from those of this host. `hosts`: the file with names of this host's own addresses."""
    own_names = _own_names(hosts)
    lines: dict[str, None] = {}
    needed: dict[str, str] = {}
    unreachable, without_key = [], []
    for source in sources:
        uri = _uri_for_box(bare(source.uri), own_names)
        if uri is None:
            unreachable.append(source)
            continue
        option = ""
        if keys.is_block(source.signed_by):
            name = f"kimbox-{hashlib.sha256(source.signed_by.encode()).hexdigest()[:16]}.asc"
            needed[name] = source.signed_by
            more = f",{keys.KEYRINGS[distribution]}" if source.is_other_suite else ""
            option = f"[signed-by=/{KEYS_DIR}/{name}{more}] "
        elif source.signed_by:
            without_key.append(source)
        lines[f"deb {option}{uri} {source.suite} {' '.join(source.components)}"] = None
    return BoxSources(tuple(lines), needed, tuple(unreachable), tuple(without_key))


def is_for_box(line: str) -> bool:
    """Whether a line of a lock is a source that a box can reach. An older kimbox, or another host, may have written it.

    Depends on nothing but the line, because the lines become part of an image.
    """
    uri = next((word for word in line.split()[1:] if ":" in word and not word.startswith("[")), "")
    return _is_reachable(uri, frozenset())


def _uri_for_box(uri: str, own_names: frozenset[str]) -> str | None:
    """The URI by which a box reaches a source, or None. A list of mirrors on this host gives its preferred mirror."""
    if uri.startswith(_MIRROR_FILES):
        path = "/" + urllib.parse.unquote(uri.split(":", 1)[1]).lstrip("/")
        return next((mirror for mirror in _mirrors(Path(path)) if _is_reachable(mirror, own_names)), None)
    return uri if _is_reachable(uri, own_names) else None


def _mirrors(file: Path) -> list[str]:
    """The URIs in a list of mirrors for packages of amd64, in the order in which apt prefers them."""
    try:
        text = read_bounded(file, limit_bytes=MAX_LIST_BYTES).decode(errors="replace")
    except (OSError, KimboxError):
        return []
    found: list[tuple[int, str]] = []
    for line in text.split("\n"):
        uri, *words = line.split() or [""]
        values: dict[str, set[str]] = {}
        for key, _, value in (word.partition(":") for word in words):
            values.setdefault(key, set()).add(value)
        numbers = [int(value) for value in values.get("priority", ()) if value.isdecimal() and len(value) < 9]
        is_for_packages = values.get("type", {"deb"}) & {"deb", "index"} and "amd64" in values.get("arch", {"amd64"})
        if uri and not uri.startswith("#") and is_for_packages:
            found.append((min(numbers, default=_NO_PRIORITY), bare(uri).rstrip("/")))
    return [uri for _, uri in sorted(found, key=lambda pair: pair[0])]


def _is_reachable(uri: str, own_names: frozenset[str]) -> bool:
    """Whether a URI has a method of METHODS and does not name this host."""
    try:
        parts = urllib.parse.urlsplit(uri)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return False
    if parts.scheme not in METHODS or not host or any(map(str.isspace, uri)):
        return False
    return not _is_loopback(host) and host not in own_names and host.partition(".")[0] != "localhost"


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified or address.is_link_local


def _own_names(hosts: Path) -> frozenset[str]:
    """The names in hosts(5) that have a loopback address."""
    try:
        text = read_bounded(hosts, limit_bytes=MAX_LIST_BYTES).decode(errors="replace")
    except (OSError, KimboxError):
        return frozenset()
    names: set[str] = set()
    for line in text.split("\n"):
        address, *others = line.partition("#")[0].split() or [""]
        if _is_loopback(address):
            names.update(name.lower() for name in others)
    return frozenset(names)
