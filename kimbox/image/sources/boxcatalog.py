"""Reads Vagrant's catalogs of boxes: the location and the checksum of the box of a version.

Format: "Box Catalog Metadata" of Vagrant's documentation. A catalog is untrusted input. A catalog from a server may
refer only to boxes on servers, so that it cannot make kimbox read a file of this machine.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

import attrs

from kimbox.errors import ImageError, KimboxError
from kimbox.files import read_json, size_words
from kimbox.image.formats import boxreader
from kimbox.log import log
from kimbox.spec import urls
from kimbox.spec.nodes import Fault
from kimbox.transfer import downloads, http
from kimbox.transfer.address import Login, public_url

#: Maximum size of a catalog, in bytes.
MAX_BYTES = 16 << 20

#: Providers whose boxes kimbox can use, in order of preference: boxes for libvirt need no conversion.
PROVIDERS = (boxreader.LIBVIRT, boxreader.VIRTUALBOX)

#: A version of a box.
VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,99}")
_PART = re.compile(r"[0-9]+|[A-Za-z]+")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@attrs.frozen
class CatalogChoice:
    """The box that was chosen from a catalog."""

    version: str
    location: str
    #: `sha256:` and 64 hex digits; None if the catalog has no checksum.
    digest: str | None
    #: Name of the box in the catalog; empty if it has none.
    name: str = ""


def is_catalog(location: str) -> bool:
    """Whether a path or URL is that of a catalog: its name ends in .json."""
    return public_url(location).endswith(".json")


def choose(location: str, version: str | None, login: Login | None = None) -> CatalogChoice:
    """Finds a box in the catalog at a path or URL. `version`: None for the newest with a box that kimbox can use.

    `login` as for `http.fetch`.

    Raises ImageError: `bad-catalog`, `version-not-found`, `unsupported-provider` if the version has no box for any of
    PROVIDERS, `unsupported-architecture`, the errors of `_read`, and those of an entry (`bad-url`, `bad-digest` ...).
    """
    place = public_url(location)
    catalog = _read(location, login)
    versions = _versions(catalog, place)
    newest_first = sorted(versions, key=order, reverse=True)
    if not newest_first or (version is not None and version not in versions):
        known = ", ".join(reversed(newest_first[:10]))
        raise ImageError(
            f"the catalog {place} has {f'no version {version}' if version else 'no versions'}",
            code="version-not-found",
            hint=f"its newest versions: {known}" if known else None,
            fields={"catalog": place, "version": version or "", "known": known},
        )
    for candidate in [version] if version is not None else newest_first:
        if entry := _usable(versions[candidate]):
            return attrs.evolve(_chosen(entry, candidate, location), name=str(catalog.get("name", "")))
    raise _unusable(place, version or newest_first[0], versions[version or newest_first[0]])


def _usable(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry of a version that kimbox uses: of the first provider of PROVIDERS, for the architecture of its boxes.

    An entry for this architecture is preferred to one without an architecture, as Vagrant 2.4 does. None if there is
    no such entry.
    """
    for provider in PROVIDERS:
        offered = [entry for entry in entries if entry.get("name") == provider]
        by_state = {boxreader.is_for_this_architecture(entry.get("architecture")): entry for entry in offered}
        if entry := by_state.get(True) or by_state.get(None):
            return entry
    return None


def _unusable(place: str, version: str, entries: list[dict[str, Any]]) -> ImageError:
    """The error for a version of which kimbox can use no entry: all are for other providers or architectures."""
    offered = [entry for entry in entries if entry.get("name") in PROVIDERS]
    if offered:
        names = ", ".join(sorted({str(entry.get("architecture"))[:40] for entry in offered}))[:100]
        return ImageError(
            f"version {version} in the catalog {place} is for the architecture {names}; "
            f"kimbox runs boxes for {boxreader.ARCHITECTURE}",
            code="unsupported-architecture",
            fields={"catalog": place, "version": version, "architecture": names},
        )
    names = ", ".join(sorted({str(entry.get("name"))[:40] for entry in entries}))[:100]
    return ImageError(
        f"version {version} in the catalog {place} is for {names or 'no provider'}; "
        f"kimbox can use boxes for {' and '.join(PROVIDERS)}",
        code="unsupported-provider",
        fields={"catalog": place, "version": version, "providers": names},
    )


def _read(location: str, login: Login | None) -> dict[str, Any]:
    """The catalog at a path or URL.

    Raises ImageError: `file-not-found`, `file-unreadable`, `bad-catalog` if it is not a JSON object, `file-too-large`,
    `not-a-regular-file`, and the errors of `http.fetch`.
    """
    place = public_url(location)
    try:
        if not urls.is_url(location):
            return read_json(Path(location), limit_bytes=MAX_BYTES)
        part = downloads.folder() / f"catalog-{os.getpid()}.part"
        try:
            with log.step(f"fetching {place}"):
                http.fetch(location, part, None, limit_bytes=MAX_BYTES, login=login)
            return read_json(part, limit_bytes=MAX_BYTES)
        finally:
            http.discard(part)
    except OSError as error:
        raise ImageError(
            f"the catalog {location} cannot be read: {error.strerror}",
            code="file-not-found" if isinstance(error, FileNotFoundError) else "file-unreadable",
            fields={"catalog": place},
        ) from None
    except ImageError:
        raise
    except KimboxError as error:
        raise ImageError(
            f"{place} is not a catalog of boxes: not a JSON object, or larger than {size_words(MAX_BYTES)}",
            code="bad-catalog" if error.code == "file-damaged" else error.code,
            fields={"catalog": place},
        ) from None


def _versions(catalog: dict[str, Any], place: str) -> dict[str, list[dict[str, Any]]]:
    """The entries of each version, one for each provider and architecture; revoked versions are left out."""
    listed = catalog.get("versions")
    if not isinstance(listed, list):
        raise ImageError(
            f"{place} is not a catalog of boxes: it has no list of versions",
            code="bad-catalog",
            fields={"catalog": place, "missing": "versions"},
        )
    versions = {}
    for entry in filter(_is_object, listed):
        version, providers = entry.get("version"), entry.get("providers")
        if isinstance(version, str) and VERSION.fullmatch(version) and entry.get("status") != "revoked":
            versions[version] = list(filter(_is_object, providers if isinstance(providers, list) else []))
    return versions


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def order(version: str) -> list[tuple[int, int, str]]:
    """A key that sorts versions as Vagrant does (Gem::Version): numbers by value, prereleases (1.0.beta) before 1.0."""
    parts = [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in _PART.findall(version)]
    first_word = next((index for index, part in enumerate(parts) if part[2]), len(parts))
    numbers = parts[:first_word]
    while numbers and numbers[-1] == (1, 0, ""):  # 1.0 and 1.0.0 are equal
        numbers.pop()
    return [*numbers, *parts[first_word:], (1, 0, "")]


def _chosen(offered: dict[str, Any], version: str, catalog: str) -> CatalogChoice:
    """The box of one provider. Raises ImageError, with the fault's code, if its location or checksum is invalid."""
    try:
        return CatalogChoice(version, _location(offered.get("url"), catalog), _digest(offered))
    except Fault as fault:
        place = public_url(catalog)
        raise ImageError(
            f"version {version} in the catalog {place} cannot be used: {fault.message}",
            code=fault.code,
            hint="pass the URL of the box instead of the catalog, and its digest with --digest",
            fields={"catalog": place, "version": version},
        ) from None


def _location(url: object, catalog: str) -> str:
    """The path or URL of a box: `url` of its entry, relative to the location of the catalog. Raises Fault."""
    if not isinstance(url, str) or not url:
        raise Fault("it has no URL", code="wrong-type")
    if urls.is_url(catalog):
        place = urllib.parse.urljoin(public_url(catalog), url)
        if not place.startswith(("http://", "https://")):
            raise Fault("its URL is not http or https", code="bad-url")
        return urls.image(place)
    if not urls.is_url(url) or url.startswith("file://"):
        path = urllib.parse.unquote(url.removeprefix("file://"))
        if not path.isprintable():  # `%00`, which no path can have
            raise Fault("its path contains a control character", code="bad-path")
        return str(Path(catalog).parent / path)
    return urls.image(url)


def _digest(offered: dict[str, Any]) -> str | None:
    """`sha256:` and the checksum of a box, or None. Raises Fault if the checksum is of another type."""
    checksum, kind = offered.get("checksum"), offered.get("checksum_type")
    if not checksum:
        return None
    if kind != "sha256" or not _SHA256.fullmatch(str(checksum)):
        raise Fault(f"its checksum is not a sha256; its type is {str(kind)[:20]!r}", code="bad-digest")
    return f"sha256:{str(checksum).lower()}"
