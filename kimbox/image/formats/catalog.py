"""Writes Vagrant's catalog of a box: a metadata.json with versions, URLs and checksums, for any web server.

A published package never changes: every version has a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kimbox.errors import KimboxError, StateError
from kimbox.files import read_json, write_json

#: A version in the format of Gem::Version, by which Vagrant orders versions.
VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+)*")


def check(file: Path, name: str, version: str, providers: Iterable[str]) -> None:
    """Raises StateError if a version already has a package for a provider, KimboxError if `file` is not a catalog.

    A file that does not exist is a new catalog.
    """
    _entry_for(file, _read(file, name, ""), version, providers)


def add(
    file: Path, name: str, description: str, version: str, url: str, packages: Mapping[str, tuple[str, str]]
) -> None:
    """Adds packages to a catalog: provider -> path relative to `url`, and SHA-256 hex digest.

    `url` is the URL of the catalog's folder. Creates the catalog if it does not exist. Raises the errors of `check`.
    """
    catalog = _read(file, name, description)
    entry = _entry_for(file, catalog, version, packages)
    if entry not in catalog["versions"]:
        catalog["versions"].append(entry)
    for provider, (path, digest) in packages.items():
        package_url = f"{url.rstrip('/')}/{path}"
        entry["providers"].append({"name": provider, "url": package_url, "checksum_type": "sha256", "checksum": digest})
    write_json(file, catalog)


def _entry_for(file: Path, catalog: dict[str, Any], version: str, providers: Iterable[str]) -> dict[str, Any]:
    """The entry of a version in a catalog, or a new entry that is not in it yet. Raises the errors of `check`."""
    entry = _entry(catalog, version)
    for provider in providers:
        if any(package.get("name") == provider for package in entry["providers"]):
            raise StateError(
                f"{file} already has a package of {catalog['name']} {version} for {provider}",
                code="version-exists",
                hint="choose a new version with --version",
                fields={"path": str(file), "version": version, "provider": provider},
            )
    return entry


def _read(file: Path, name: str, description: str) -> dict[str, Any]:
    """The catalog in a file, or a new catalog if the file does not exist."""
    if not file.exists():
        return {"name": name, "description": description, "versions": []}
    catalog = read_json(file)
    if catalog.get("name") != name or not _is_catalog(catalog):
        raise KimboxError(
            f"{file} is not a catalog of {name}",
            code="bad-catalog",
            hint="choose another folder with --output",
            fields={"path": str(file), "name": name},
        )
    return catalog


def _entry(catalog: dict[str, Any], version: str) -> dict[str, Any]:
    """The entry of a version in a catalog, or a new, empty entry that is not in the catalog."""
    new: dict[str, Any] = {"version": version, "providers": []}
    return next((entry for entry in catalog["versions"] if entry["version"] == version), new)


def _is_catalog(value: dict[str, Any]) -> bool:
    """Whether a JSON object has the structure of a catalog."""
    versions = value.get("versions")
    return isinstance(versions, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("version"), str)
        and isinstance(entry.get("providers"), list)
        and all(isinstance(package, dict) for package in entry["providers"])
        for entry in versions
    )
