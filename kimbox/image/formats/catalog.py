"""Vagrant's catalog of a box: a metadata.json that any web server can hold, with versions, places and checksums.

A package that was published stays what it is: every version lies in a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kimbox.errors import KimboxError, StateError
from kimbox.files import read_json, write_json

#: A version as Vagrant orders them (Gem::Version).
VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+)*")


def check(file: Path, name: str, version: str, providers: Iterable[str]) -> None:
    """Raises StateError where a version has a package of a provider already, KimboxError where `file` is no catalog."""
    _place(file, _read(file, name, ""), version, providers)


def add(
    file: Path, name: str, description: str, version: str, url: str, packages: Mapping[str, tuple[str, str]]
) -> None:
    """Adds packages to a catalog, which is made if there is none: provider -> path from `url`, hex digest.

    `url` is where the catalog's folder is on the server. Raises as `check` does.
    """
    catalog = _read(file, name, description)
    entry = _place(file, catalog, version, packages)
    if entry not in catalog["versions"]:
        catalog["versions"].append(entry)
    for provider, (path, digest) in packages.items():
        place = f"{url.rstrip('/')}/{path}"
        entry["providers"].append({"name": provider, "url": place, "checksum_type": "sha256", "checksum": digest})
    write_json(file, catalog)


def _place(file: Path, catalog: dict[str, Any], version: str, providers: Iterable[str]) -> dict[str, Any]:
    """Where a catalog names the packages of a version, new where it has none. Raises as `check` does."""
    entry = _entry(catalog, version)
    for provider in providers:
        if any(one.get("name") == provider for one in entry["providers"]):
            hint = "give the new one a version of its own with --version"
            raise StateError(f"{file} has a package of {catalog['name']} {version} for {provider} already", hint=hint)
    return entry


def _read(file: Path, name: str, description: str) -> dict[str, Any]:
    """The catalog; a new one where there is none."""
    if not file.exists():
        return {"name": name, "description": description, "versions": []}
    catalog = read_json(file)
    if catalog.get("name") != name or not _is_catalog(catalog):
        raise KimboxError(f"{file} is no catalog of {name}", hint="choose another folder with --output")
    return catalog


def _entry(catalog: dict[str, Any], version: str) -> dict[str, Any]:
    """What a catalog has of a version; nothing yet where it has none."""
    empty: dict[str, Any] = {"version": version, "providers": []}
    return next((one for one in catalog["versions"] if one["version"] == version), empty)


def _is_catalog(value: dict[str, Any]) -> bool:
    versions = value.get("versions")
    return isinstance(versions, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("version"), str)
        and isinstance(one.get("providers"), list)
        and all(isinstance(provider, dict) for provider in one["providers"])
        for one in versions
    )
