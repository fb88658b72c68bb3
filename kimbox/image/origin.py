"""The origin of an image, from its own record in the store: packages, base, and changes that were made by hand.

An image that kimbox built has the packages of its lock beside its disk. An image that a maintainer changed has the
record of the changes. A box that kimbox packaged has the lock, which is a claim of the author of the box: kimbox uses
its digests only for packages that the disk has at the same version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from kimbox.errors import KimboxError
from kimbox.files import read_json
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.lockfile import parse_lock
from kimbox.lock.provenance.inputs import BaseImage
from kimbox.spec.urls import is_url


@attrs.frozen
class Origin:
    """The origin of an image."""

    #: The packages that were locked for the image; None if they are not known.
    packages: LockedPackages | None = None
    #: The images on which it is based, the direct base first.
    bases: tuple[BaseImage, ...] = ()
    #: Changes by hand, sorted: `file PATH`.
    changed: tuple[str, ...] = ()


def of(image: Image) -> Origin:
    """The origin of an image in the store. A part of its record that is missing or damaged is left out."""
    bases: list[BaseImage] = []
    changed: set[str] = set()
    current: Image | None = image
    while current and len(bases) < images.MAX_CHAIN:
        former = current.facts.get("former")
        if not isinstance(former, str):
            break
        changed |= _changed_files(current.disk.parent / images.CHANGES)
        current = _found(former)
        is_added = current is not None and "location" in current.facts
        sha256 = former if is_added else image.facts.get("former_sha256") if not bases else None
        bases.append(BaseImage(former, sha256 if isinstance(sha256, str) else None, _url(current)))
    if current and "location" in current.facts:
        if current is image:
            bases.append(BaseImage(current.key, current.key, _url(current)))
        changed |= changed_in(_json(current, "kimbox.json").get("changes"))
    return Origin(packages_of(image), tuple(bases), tuple(sorted(changed)))


def packages_of(image: Image) -> LockedPackages | None:
    """The packages that were locked for an image or for its base; None if they are not known."""
    for _ in range(images.MAX_CHAIN):
        with contextlib.suppress(OSError, KimboxError, ValueError, KeyError, TypeError, AttributeError):
            return LockedPackages.from_tree(read_json(image.disk.parent / images.PACKAGES))
        with contextlib.suppress(KimboxError):
            if lock := images.kept_file(image, "kimbox.lock"):
                return parse_lock(lock.decode("utf-8", "replace"), Path("kimbox.lock"))[0].packages
        former = image.facts.get("former")
        found = _found(former) if isinstance(former, str) else None
        if found is None:
            return None
        image = found
    return None


def _found(key: str) -> Image | None:
    with contextlib.suppress(KimboxError):
        return images.find(key)
    return None


def _url(image: Image | None) -> str:
    """The URL of an added image. A path of this host is left out: it says nothing on another host."""
    location = image.facts.get("location") if image else None
    return location if isinstance(location, str) and is_url(location) and not location.startswith("file:") else ""


def _json(image: Image, name: str) -> Mapping[str, Any]:
    """A JSON object among the small files of an added box, or an empty mapping."""
    with contextlib.suppress(OSError, KimboxError):
        return read_json(image.disk.parent / images.BOX_FOLDER / name)
    return {}


def _changed_files(record: Path) -> set[str]:
    with contextlib.suppress(OSError, KimboxError):
        return changed_in(read_json(record))
    return set()


def changed_in(changes: object) -> set[str]:
    """The files in a record of changes, as `Changes.as_json` returns it. Other values are left out."""
    files = changes.get("files") if isinstance(changes, dict) else None
    if not isinstance(files, dict):
        return set()
    lists = (files.get(kind) for kind in ("added", "removed", "changed"))
    return {f"file {path}" for paths in lists if isinstance(paths, list) for path in paths if isinstance(path, str)}
