"""Adds and removes boxes that were made elsewhere. An added box is a name for an image of the store."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from kimbox.actions import prune
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import parse_json, sha256_file
from kimbox.image import obtain
from kimbox.image.sources import boxcatalog
from kimbox.image.sources.boxcatalog import CatalogChoice
from kimbox.image.store import images, names
from kimbox.image.store.images import Image
from kimbox.image.store.names import AddedBox
from kimbox.lock.apt.archive import ARCHITECTURE
from kimbox.log import log
from kimbox.spec.model import RemoteImage
from kimbox.spec.urls import is_plain_http, is_url
from kimbox.transfer import address, downloads, http
from kimbox.transfer.address import Login, public_url


def add(
    name: str,
    location: str,
    *,
    digest: str | None,
    keys: tuple[str, ...],
    force: bool,
    version: str | None = None,
    is_unverified: bool = False,
    is_older_allowed: bool = False,
) -> AddedBox:
    """Adds a box or a disk to the store under a name. Warns if it came over http without a digest or signature.

    `location`: path or URL of a box, a disk or a catalog. User name and password in a URL are used, but not stored.
    `digest`: `sha256:` and 64 hex digits that the file must have, or None. `keys`: ssh public keys, one of which must
    have signed the box; empty to accept it unsigned. `force`: replaces another box of that name. `version`: the version
    of a catalog; None for the newest. `is_unverified`: accepts a box from a catalog without a checksum.
    `is_older_allowed`: accepts an older version than that of the box that has the name.

    Raises ImageError if the file is missing or rejected, if nothing verifies a box from a catalog (`checksum-missing`),
    if its signed name, version or architecture is another one (`wrong-box`), or if it is older (`version-older`);
    StateError if another box has the name.
    """
    choice = None
    has_digest, is_by_http = digest is not None, is_plain_http(location)
    location, login = address.take(location) if is_url(location) else (location, None)
    if boxcatalog.is_catalog(location):
        choice = _choice(location, version, login, is_checked=bool(digest or keys or is_unverified))
        location, version, digest = choice.location, choice.version, digest or choice.digest
        is_by_http |= digest is None and is_plain_http(location)
    former = names.find(name)
    existing = former if not force else None
    image = RemoteImage(location if is_url(location) else os.path.abspath(location), digest or _digest(location, login))  # noqa: PTH100
    if existing and existing.digest != image.digest:
        raise StateError(
            f"another added box has the name {name} already",
            code="name-in-use",
            hint="choose another name, or replace it with --force",
            fields={"name": name},
        )
    with obtain.leased_file(image, keys, login=login) as stored:
        if keys:
            version = _signed_version(stored, choice)
        if former and not is_older_allowed:
            _refuse_older(former, version)
        public_location = public_url(image.location)
        added = AddedBox(name, stored.key, stored.facts.get("provider"), public_location, bool(keys), version)
        names.write(added)
    if not keys and not has_digest and is_by_http:
        log.warn(
            f"{name} was downloaded over http without --digest or --key, so it may have been changed on the way: "
            f"compare its digest with that of its author: {added.digest}"
        )
    return added


def _choice(location: str, version: str | None, login: Login | None, *, is_checked: bool) -> CatalogChoice:
    """The box of a catalog. Raises ImageError (`checksum-missing`) if neither its checksum nor the user verifies it."""
    choice = boxcatalog.choose(location, version, login)
    log.info(f"using version {choice.version} from {public_url(choice.location)}")
    if choice.digest or is_checked:
        return choice
    raise ImageError(
        f"the catalog {public_url(location)} has no checksum for version {choice.version}, so nothing shows that the "
        "box is the one of its author",
        code="checksum-missing",
        hint="pass --digest sha256:HEX or --key KEY of its author, or accept any content with --unverified",
        fields={"catalog": public_url(location), "version": choice.version},
    )


def _signed_version(image: Image, choice: CatalogChoice | None) -> str | None:
    """The version in the signed kimbox.json of a box; None if it has none.

    `choice`: what a catalog says about the box. A catalog is not signed: it could offer an old or another box of the
    same author. Raises ImageError (`wrong-box`) if the signed name, version or architecture is another one.
    """
    try:
        about = parse_json(images.kept_file(image, "kimbox.json") or b"{}")
    except ValueError:
        about = None
    signed = {key: about.get(key) for key in ("name", "version", "architecture")} if isinstance(about, dict) else {}
    if choice:
        expected = {"name": choice.name, "version": choice.version, "architecture": ARCHITECTURE}
        for key, value in expected.items():
            if signed.get(key) != value:
                raise ImageError(
                    f"the signed {key} of the box is {str(signed.get(key))[:100]!r}, and the catalog offers it as "
                    f"{value!r}",
                    code="wrong-box",
                    hint="the catalog offers another box or version than its author signed; `kimbox package --version "
                    f"{choice.version} --sign KEY` signs this version",
                    fields={"field": key, "signed": str(signed.get(key))[:100], "expected": value},
                )
    version = signed.get("version")
    return version if isinstance(version, str) and boxcatalog.VERSION.fullmatch(version) and version != "0" else None


def _refuse_older(former: AddedBox, version: str | None) -> None:
    """Raises ImageError (`version-older`) if a version is older than that of the box that has the name now."""
    if former.version and version and boxcatalog.order(version) < boxcatalog.order(former.version):
        raise ImageError(
            f"version {version} is older than version {former.version} of the added box {former.name}",
            code="version-older",
            hint="an attacker may offer an old version with known faults; --allow-older accepts it",
            fields={"name": former.name, "version": version, "former_version": former.version},
        )


def _digest(location: str, login: Login | None) -> str:
    """The digest of the file at a path or URL. A downloaded file is kept for `obtain`, to download it only once.

    Raises ImageError if the file cannot be read or downloaded.
    """
    if not is_url(location):
        try:
            with log.step(f"reading {location}"):
                return sha256_file(Path(location))
        except OSError as error:
            code = "file-not-found" if isinstance(error, FileNotFoundError) else "file-unreadable"
            raise ImageError(
                f"{location} cannot be read: {error.strerror}", code=code, fields={"path": location}
            ) from None
    with downloads.for_url(location) as part, log.step(f"downloading {public_url(location)}"):
        return f"sha256:{http.fetch(location, part, None, login=login)}"


@attrs.frozen
class Removed:
    """A removed box, and the space that its disk took; 0 if a machine or another box still needs the disk."""

    name: str
    freed_bytes: int


def remove(boxes: list[str]) -> list[Removed]:
    """Removes the added boxes of these names, and their disks if no machine and no other box needs them.

    Raises StateError if there is no box of a name; the boxes before it are removed then.
    """
    removed = []
    for name in boxes:
        image = _image_of(name)
        names.remove(name)
        try:
            images = prune.remove([item for item in prune.unused() if item.path.name == image])
        except KimboxError as error:  # the record of another box or machine is damaged: it may need the disk
            log.warn(f"the disk of {name} stays in the store: {error}")
            images = []
        removed.append(Removed(name, sum(item.size_bytes for item in images)))
    return removed


def _image_of(name: str) -> str | None:
    """The key of a box's image; None if the box does not exist or its record is damaged, so that `remove` works."""
    try:
        box = names.find(name)
    except KimboxError:
        return None
    return box.image if box else None


def unused() -> list[AddedBox]:
    """The boxes that no machine was made from."""
    used = prune.used_by_machines()
    return [box for box in names.every() if box.image not in used]
