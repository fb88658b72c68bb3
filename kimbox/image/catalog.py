"""Vagrant's catalog of a box: a metadata.json that any web server can hold, with versions, places and checksums."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kimbox.errors import KimboxError, StateError
from kimbox.files import read_json, write_json

#: A version as Vagrant orders them (Gem::Version).
VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+)*")


def add(
    file: Path, name: str, description: str, version: str, url: str, packages: Mapping[str, tuple[str, str]]
) -> None:
    """Adds packages to a catalog, which is made if there is none: provider -> name of the file, hex digest.

    `url` is the folder on the server that they will lie in. Raises StateError where the version has another package of
    that provider already, KimboxError where the file is no catalog.
    """
    catalog: dict[str, Any] = {"name": name, "description": description, "versions": []}
    if file.exists():
        catalog = read_json(file)
        if catalog.get("name") != name or not _is_catalog(catalog):
            raise KimboxError(f"{file} is no catalog of {name}", hint="choose another folder with --output")
    entry = next((one for one in catalog["versions"] if one["version"] == version), None)
    if entry is None:
        entry = {"version": version, "providers": []}
        catalog["versions"].append(entry)
    for provider, (target, digest) in packages.items():
        new = {
            "name": provider,
            "url": f"{url.rstrip('/')}/{target}",
            "checksum_type": "sha256",
            "checksum": digest,
        }
        old = next((one for one in entry["providers"] if one.get("name") == provider), None)
        if old is None:
            entry["providers"].append(new)
        elif old != new:
            hint = "give the new one a version of its own with --version"
            raise StateError(f"{file} has another package of {name} {version} for {provider}", hint=hint)
    write_json(file, catalog)


def _is_catalog(value: dict[str, Any]) -> bool:
    versions = value.get("versions")
    return isinstance(versions, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("version"), str)
        and isinstance(one.get("providers"), list)
        and all(isinstance(provider, dict) for provider in one["providers"])
        for one in versions
    )
