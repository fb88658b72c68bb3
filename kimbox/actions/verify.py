"""Builds an image again from its spec and lock, and compares byte for byte."""

from __future__ import annotations

import time

import attrs

from kimbox import paths
from kimbox.errors import ImageError
from kimbox.files import locked, size_words
from kimbox.image import namespace
from kimbox.image.disk import compare
from kimbox.image.disk.compare import Difference
from kimbox.image.store import images
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackages
from kimbox.log import log
from kimbox.spec.model import Box, PackageImage

#: Prefix of the name under which the second build is at work.
AGAIN = "verify-"


@attrs.frozen
class Verified:
    """What came of a second build: both sha256 hex digests of the whole disk, and where they differ."""

    key: str
    stored_sha256: str
    built_sha256: str
    differences: tuple[Difference, ...]
    build_s: float


def verify(box: Box, packages: LockedPackages | None, *, offline: bool = False) -> Verified:
    """Builds the image of a box once more, beside the one in the store, and removes it afterwards.

    Raises ImageError if the image is not built here, is not in the store, or cannot be built again.
    """
    image = box.image
    if not isinstance(image, PackageImage):
        raise ImageError(
            f"the image of {box.name} comes from elsewhere: there is nothing to build",
            hint="its digest is in the spec, and is checked before the image is used",
        )
    key = images.key_of(box, packages)
    stored = images.find(key)
    if stored is None:
        raise ImageError(f"the image {key[:12]} is not in the store", hint="`kimbox build` makes it")
    plan = images.recipe_of(box, packages)
    namespace.check()
    cache.ensure(image, plan.locked, offline=offline)
    work = paths.images_dir() / f"{images.TEMPORARY}{AGAIN}{key}"
    busy = "another kimbox is verifying this image"
    with locked(paths.images_dir() / f"{AGAIN}{key}.lock", wait_s=images.BUILD_WAIT_S, busy=busy):
        namespace.remove(work)
        work.mkdir(mode=0o700)
        try:
            (work / images.DONE).mkdir()
            started = time.monotonic()
            images.build_logged(plan, image, work)
            build_s = time.monotonic() - started
            built = work / images.DONE / images.DISKS["raw"]
            with log.step("comparing"):

                def tell(done: int) -> None:
                    log.now(f"{size_words(done)} of {size_words(plan.layout.size_bytes)}")

                found = compare.compare(stored.disk, built, plan.layout, on_bytes=tell)
                digest = compare.sha256_disk(stored.disk, on_bytes=tell)
                other = compare.sha256_disk(built, on_bytes=tell) if found else digest
        finally:
            namespace.remove(work)
    return Verified(key, digest, other, tuple(found), round(build_s, 1))
