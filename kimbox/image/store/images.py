"""The image store: one folder an image, named by its key, whole or not there.

images/<key>/disk.raw      the disk (or disk.qcow2), sparse, never written again
images/<key>/image.json    what it is
images/<key>/build.log     how it was made, if it was made here
images/<key>.lock          held by the one kimbox that makes it
images/<key>.failed.log    the log of the last build, if that failed
images/.tmp-<key>/         an image in the making, this user's alone; the next that wants an image removes what was left
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from kimbox import __version__, paths
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import is_full, locked, read_json, sync_folder, write_json
from kimbox.image import namespace
from kimbox.image.build import disk as disks
from kimbox.image.build import rootfs
from kimbox.image.inputs.recipe import Recipe, recipe
from kimbox.image.sanitize import secrets
from kimbox.image.store import names
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackages
from kimbox.log import log
from kimbox.run import CommandError
from kimbox.spec.model import Box, BoxImage, PackageImage, RemoteImage
from kimbox.spec.urls import is_url

FACTS = "image.json"
BUILD_LOG = "build.log"

#: Names of the disk, by its format as QEMU calls it.
DISKS = {"raw": "disk.raw", "qcow2": "disk.qcow2"}

#: Prefix of folders that a build is at work in, and in them the folder that becomes the image.
TEMPORARY = ".tmp-"
DONE = "done"

#: Waiting for another kimbox that makes the same image.
BUILD_WAIT_S = 3600.0

#: What helps where a package has made a key that kimbox does not know of, at installation.
IN_EACH_BOX = "install the package that makes it in a step of `provision`, which runs in each box, not in the image"

_ROOM = "make room, or let $KIMBOX_HOME name a folder on a larger disk; then run the same command again"


@attrs.frozen
class Image:
    """An image that is ready to use."""

    key: str
    disk: Path
    #: `raw` or `qcow2`, as QEMU names it.
    format: str
    facts: dict[str, Any]

    @property
    def virtual_bytes(self) -> int:
        """The size of the disk that a guest sees; no overlay may be smaller."""
        return int(self.facts.get("virtual_bytes", 0))


def find(key: str) -> Image | None:
    """The image of that key, if the store has it. Raises ImageError if what it has is damaged."""
    folder = paths.images_dir() / key
    if not folder.exists():
        return None
    try:
        facts = read_json(folder / FACTS)
        kind = facts.get("format")
        if kind not in DISKS or facts.get("key") != key:
            raise KimboxError(f"{FACTS} does not describe this image")
        (folder / DISKS[kind]).stat()
    except (OSError, KimboxError) as error:
        raise ImageError(
            f"the image {key[:12]} in the store is damaged: {error}",
            hint=f"destroy the boxes made from it, then remove the folder {folder}",
        ) from None
    return Image(key, folder / DISKS[kind], kind, facts)


def key_of(box: Box, locked: LockedPackages | None) -> str:
    """The key of a box's image, made or not. `locked`: of its lock; None for an image that is not built here."""
    if isinstance(box.image, RemoteImage):
        return box.image.digest.removeprefix("sha256:")
    if isinstance(box.image, BoxImage):
        return names.require(box.image.name).image
    return recipe_of(box, locked).key


def recipe_of(box: Box, locked: LockedPackages | None) -> Recipe:
    """The recipe of a box whose image is built here, from its lock. Raises ImageError if that names no packages."""
    if locked is None or not isinstance(box.image, PackageImage):
        raise ImageError(f"the lock of {box.name} names no packages", hint="`kimbox lock` chooses them")
    return recipe(box, box.image, locked)


def ensure(box: Box, locked: LockedPackages | None, *, offline: bool = False) -> Image:
    """The image of a box: taken from the store, or built or fetched now. Raises ImageError, which says why not.

    `locked` as for `key_of`. `offline`: nothing may be fetched.
    """
    _sweep()
    if isinstance(box.image, RemoteImage):
        from kimbox.image.sources import remote

        if offline and find(key_of(box, None)) is None:
            _check_offline(box.image)
        return remote.ensure(box.image)
    if isinstance(box.image, BoxImage):
        return _added(box.image.name)
    plan, image = recipe_of(box, locked), box.image
    if found := find(plan.key):
        return found
    namespace.check()
    cache.ensure(image, plan.locked, offline=offline)
    return make(plan.key, lambda work: build_logged(plan, image, work))


def _added(name: str) -> Image:
    """The image of a box that was added. Raises ImageError if it is not in the store any more."""
    if found := find(names.require(name).image):
        return found
    raise ImageError(f"the disk of the added box {name} is gone", hint="`kimbox box add --force` brings it again")


def _check_offline(image: RemoteImage) -> None:
    """Raises ImageError, naming the image, if the network would be needed for it."""
    if is_url(image.location) and not image.location.startswith("file:"):
        raise ImageError(
            f"the image {image.digest[7:19]} is not in the store, and --offline asks no server",
            hint="without --offline it is fetched; `kimbox build` does only that",
        )


def make(key: str, fill: Callable[[Path], dict[str, Any]]) -> Image:
    """The image of that key: made now, unless another kimbox makes it meanwhile.

    `fill` gets an empty folder, puts the finished disk, synced, into its subfolder DONE under a name of DISKS, and
    returns facts, `format` among them. The image appears in the store whole or not at all, however this ends.
    """
    images = paths.images_dir()
    work = images / f"{TEMPORARY}{key}"
    try:
        with locked(images / f"{key}.lock", wait_s=BUILD_WAIT_S, busy="another kimbox is making this image"):
            if found := find(key):
                return found
            namespace.remove(work)
            work.mkdir(mode=0o700)  # it holds how mirrors are reached: proxies and passwords
            (work / DONE).mkdir()
            try:
                _publish(key, work / DONE, fill(work))
            finally:
                namespace.remove(work)
    except OSError as error:
        if not is_full(error):
            raise
        raise ImageError(f"no space is left for the image in {images}", hint=_ROOM) from None
    found = find(key)
    if not found:
        raise ImageError("the image was made and is not in the store", hint="was it removed meanwhile?")
    return found


def _publish(key: str, done: Path, facts: dict[str, Any]) -> None:
    """Turns a finished folder into the image `key`, in one rename."""
    images = paths.images_dir()
    write_json(done / FACTS, facts | {"kimbox": __version__, "key": key})
    (done / DISKS[facts["format"]]).chmod(0o444)
    sync_folder(done)
    done.rename(images / key)
    sync_folder(images)
    _failed_log(key).unlink(missing_ok=True)


def _sweep() -> None:
    """Removes what interrupted builds left: folders whose lock nobody holds."""
    for left in paths.images_dir().glob(f"{TEMPORARY}*"):
        key = left.name.removeprefix(TEMPORARY)
        with contextlib.suppress(StateError), locked(paths.images_dir() / f"{key}.lock"):
            namespace.remove(left)


def _failed_log(key: str) -> Path:
    return paths.images_dir() / f"{key}.failed.log"


def build_logged(plan: Recipe, image: PackageImage, work: Path) -> dict[str, Any]:
    """Fills `work` as `make` wants it; where that fails the log is kept, and the error names it."""
    title = f"building the image ({image.distribution} {image.suite}, {len(plan.locked.versions)} packages)"
    try:
        with log.step(title):
            return _build(plan, work)
    except (CommandError, ImageError, OSError) as error:
        kept = _failed_log(plan.key)
        with contextlib.suppress(OSError):
            (work / BUILD_LOG).replace(kept)
        if isinstance(error, OSError):
            if not is_full(error):
                raise
            raise ImageError(f"no space is left for the image in {work.parent}", hint=_ROOM) from None
        hint = f"the whole log: {kept}" if isinstance(error, CommandError) else error.hint
        if "No space left on device" in error.message:
            hint = _ROOM
        raise ImageError(f"the image could not be built: {error.message}", hint=hint) from None


def _build(plan: Recipe, work: Path) -> dict[str, Any]:
    started = time.monotonic()
    done = work / DONE
    with (work / BUILD_LOG).open("w", encoding="utf-8") as build_log:
        with log.step("installing packages"):
            rootfs.build(plan, work, on_line=log.now, log=build_log)
        with log.step("writing the disk"):
            unpacked = disks.assemble(plan, work, done / DISKS["raw"])
        with log.step("looking for keys and identities"):
            found = secrets.scan(done / DISKS["raw"], on_part=log.now)
        build_log.writelines(f"kept: {line}\n" for line in found.lines())
        found.check("the image", hint=IN_EACH_BOX)
    os.link(work / BUILD_LOG, done / BUILD_LOG)
    return {
        "format": "raw",
        "virtual_bytes": plan.layout.size_bytes,
        "distribution": plan.distribution,
        "suite": plan.suite,
        "packages": plan.packages,
        "unpacked_bytes": unpacked,
        "kept_keys": [finding.as_json() for finding in found.kept],
        "build_s": round(time.monotonic() - started, 1),
    }
