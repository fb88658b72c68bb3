"""Adding boxes to this machine and removing them: names for images of the store."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.actions import prune
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import sha256_file
from kimbox.image import obtain
from kimbox.image.sources import boxcatalog
from kimbox.image.store import names
from kimbox.image.store.names import AddedBox
from kimbox.log import log
from kimbox.machine.folder import machines
from kimbox.spec.model import RemoteImage
from kimbox.spec.urls import is_url
from kimbox.transfer import http


def add(
    name: str,
    location: str,
    *,
    digest: str | None,
    keys: tuple[str, ...],
    force: bool,
    version: str | None = None,
) -> AddedBox:
    """Brings a box, or a disk, into the store and gives it a name; says so where nothing vouches for it.

    `digest`: `sha256:` and 64 hex digits, which it must have; `keys`: public keys, one of which must have signed it.
    `force`: a name that is taken may mean another box from now on. `version`: of a catalog, whose newest it is
    otherwise. Raises ImageError for what is not taken, StateError for a name that is.
    """
    is_vouched, is_by_http = digest is not None, location.startswith("http:")
    if boxcatalog.is_catalog(location):
        chosen = boxcatalog.choose(location, version)
        log.info(f"version {chosen.version} is at {http.without_query(chosen.location)}")
        location, version, digest = chosen.location, chosen.version, digest or chosen.digest
        is_by_http |= digest is None and location.startswith("http:")
    before = names.find(name) if not force else None
    image = RemoteImage(location if is_url(location) else os.path.abspath(location), digest or _digest(location))  # noqa: PTH100
    if before and before.digest != image.digest:
        raise StateError(f"there is a box {name} already, and it is another one", hint="--force replaces it")
    with obtain.leased_file(image, keys) as stored:
        plain = http.without_query(image.location)
        added = AddedBox(name, stored.key, stored.facts.get("provider"), plain, bool(keys), version)
        names.write(added)
    if not keys and not is_vouched and is_by_http:
        log.warn(f"nothing vouches for what came over http: compare its digest, {added.digest}")
    return added


def _digest(location: str) -> str:
    """The digest of what lies there now; what a server sends stays, for the step that takes it in."""
    if not is_url(location):
        try:
            with log.step(f"reading {location}"):
                return sha256_file(Path(location))
        except OSError as error:
            raise ImageError(f"{location} cannot be read: {error.strerror}") from None
    folder = paths.downloads_dir()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{hashlib.sha256(location.encode()).hexdigest()}-{os.getpid()}.part"
    try:
        with log.step(f"fetching {http.without_query(location)}"):
            found = http.fetch(location, part, None)
        part.replace(folder / f"{found}.part")
    finally:
        http.discard(part)
    return f"sha256:{found}"


@attrs.frozen
class Removed:
    """A box that is no more, and the space that its disk took; 0 where something else needs that."""

    name: str
    freed_bytes: int


def remove(boxes: list[str]) -> list[Removed]:
    """Removes the boxes of these names, and their disks if no machine and no other box needs them.

    Raises StateError for a name that no box has.
    """
    gone = []
    for name in boxes:
        image = _image_of(name)
        names.drop(name)
        freed = prune.remove([item for item in prune.unused() if item.path.name == image])
        gone.append(Removed(name, sum(item.size_bytes for item in freed)))
    return gone


def _image_of(name: str) -> str | None:
    """What a box means; None for one that is damaged, which may be removed, too."""
    try:
        found = names.find(name)
    except KimboxError:
        return None
    return found.image if found else None


def unused() -> list[AddedBox]:
    """The boxes that no machine was made from."""
    used = {machine.record().image for machine in machines()}
    return [box for box in names.every() if box.image not in used]
