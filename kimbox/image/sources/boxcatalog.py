"""Vagrant's catalogs of boxes, as anybody may have made them: which box is meant, where it is, and what it must be.

Format: "Box Catalog Metadata" of Vagrant's documentation. A catalog from a server names boxes on servers alone: it gets
at no file of this machine.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import ImageError, KimboxError
from kimbox.files import read_json
from kimbox.image.formats import boxreader
from kimbox.log import log
from kimbox.spec import urls
from kimbox.spec.nodes import Fault
from kimbox.transfer import http

#: No catalog is longer.
MAX_BYTES = 16 << 20

#: Providers whose boxes are taken, the one that needs no conversion first.
PROVIDERS = (boxreader.LIBVIRT, boxreader.VIRTUALBOX)

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,99}")
_PART = re.compile(r"[0-9]+|[A-Za-z]+")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@attrs.frozen
class Choice:
    """One box of a catalog."""

    version: str
    location: str
    #: `sha256:` and 64 hex digits; None where the catalog has none.
    digest: str | None


def is_catalog(location: str) -> bool:
    """Whether a path or URL is that of a catalog, by its name."""
    return http.plain(location).endswith(".json")


def choose(location: str, version: str | None) -> Choice:
    """The box of a version, or of the newest, in the catalog at a path or URL.

    Raises ImageError for what is no catalog, has no such version, or has it for none of PROVIDERS.
    """
    place = http.plain(location)
    found = _versions(_read(location), place)
    if version is None:
        version = max(found, key=_order, default=None)
    if version is None or version not in found:
        known = ", ".join(sorted(found, key=_order)[-10:])
        hint = f"the newest that it has: {known}" if known else None
        raise ImageError(f"the catalog {place} has no version {version or 'at all'}", hint=hint)
    offered = {str(one.get("name")): one for one in found[version]}
    for provider in PROVIDERS:
        if provider in offered:
            return _choice(offered[provider], version, location)
    names = ", ".join(sorted(offered))[:100] or "nothing"
    raise ImageError(f"version {version} in the catalog {place} is for {names}; kimbox takes {' and '.join(PROVIDERS)}")


def _read(location: str) -> dict[str, Any]:
    try:
        if not urls.is_url(location):
            return read_json(Path(location), limit_bytes=MAX_BYTES)
        folder = paths.downloads_dir()
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"catalog-{os.getpid()}.part"
        try:
            with log.step(f"fetching {http.plain(location)}"):
                http.fetch(location, part, None, limit_bytes=MAX_BYTES)
            return read_json(part, limit_bytes=MAX_BYTES)
        finally:
            http.discard(part)
    except OSError as error:
        raise ImageError(f"the catalog {location} cannot be read: {error.strerror}") from None
    except ImageError:
        raise
    except KimboxError:
        raise ImageError(f"{http.plain(location)} is no catalog: it holds no JSON object, or too much") from None


def _versions(catalog: dict[str, Any], place: str) -> dict[str, list[dict[str, Any]]]:
    """Version -> what there is of it for each provider; what was revoked is left out."""
    versions = catalog.get("versions")
    if not isinstance(versions, list):
        raise ImageError(f"{place} is no catalog: it has no list of versions")
    found = {}
    for one in versions:
        version, providers = (one.get("version"), one.get("providers")) if isinstance(one, dict) else (None, None)
        if isinstance(version, str) and _VERSION.fullmatch(version) and one.get("status") != "revoked":
            listed = providers if isinstance(providers, list) else []
            found[version] = [provider for provider in listed if isinstance(provider, dict)]
    return found


def _order(version: str) -> list[tuple[int, int, str]]:
    """Sorts versions as Vagrant does (Gem::Version): numbers by value, and words, which announce one, before it."""
    parts = [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in _PART.findall(version)]
    word = next((at for at, part in enumerate(parts) if part[2]), len(parts))
    numbers = parts[:word]
    while numbers and numbers[-1] == (1, 0, ""):
        numbers.pop()
    return [*numbers, *parts[word:], (1, 0, "")]


def _choice(offered: dict[str, Any], version: str, catalog: str) -> Choice:
    """Where the box is, from where the catalog is, and what it must be."""
    try:
        return Choice(version, _location(offered.get("url"), catalog), _digest(offered))
    except Fault as fault:
        raise ImageError(
            f"version {version} in the catalog {http.plain(catalog)} cannot be taken: {fault.message}",
            hint="take the box itself, by its own URL, with --digest",
        ) from None


def _location(url: object, catalog: str) -> str:
    """What a catalog says of a place, as seen from here. Raises Fault."""
    if not isinstance(url, str) or not url:
        raise Fault("it names no place")
    if urls.is_url(catalog):
        place = urllib.parse.urljoin(http.plain(catalog), url)
        if not place.startswith(("http://", "https://")):
            raise Fault("it is at no place on a server")
        return urls.image(place)
    if not urls.is_url(url) or url.startswith("file://"):
        return str(Path(catalog).parent / urllib.parse.unquote(url.removeprefix("file://")))
    return urls.image(url)


def _digest(offered: dict[str, Any]) -> str | None:
    """The checksum of a box, if it has one. Raises Fault if kimbox cannot use it."""
    checksum, kind = offered.get("checksum"), offered.get("checksum_type")
    if not checksum:
        return None
    if kind != "sha256" or not _SHA256.fullmatch(str(checksum)):
        raise Fault(f"its checksum is no sha256 but {str(kind)[:20]!r}")
    return f"sha256:{str(checksum).lower()}"
