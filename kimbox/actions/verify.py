"""Builds an image again from its spec and lock, and compares byte for byte."""

from __future__ import annotations

import time
from pathlib import Path

import attrs

from kimbox.errors import ImageError
from kimbox.files import size_words
from kimbox.image import namespace, obtain
from kimbox.image.build import builder
from kimbox.image.disk import compare
from kimbox.image.disk.compare import Difference
from kimbox.image.inputs.recipe import Recipe
from kimbox.image.store import images, lease
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackages
from kimbox.log import log
from kimbox.spec.model import Box, PackageImage

#: Prefix of the name of the workspace in which the image is built a second time.
AGAIN = "verify-"


@attrs.frozen
class Verified:
    """What came of a second build: both sha256 hex digests of the whole disk, and where they differ."""

    key: str
    stored_sha256: str
    built_sha256: str
    differences: tuple[Difference, ...]
    build_s: float


def verify(box: Box, packages: LockedPackages | Recipe | None, *, offline: bool = False) -> Verified:
    """Builds the image of a box once more, beside the one in the store, and removes it afterwards.

    `packages`: those of its lock, or the recipe that was made from them.
    Raises ImageError if the image is not built here, is not in the store, or cannot be built again.
    """
    image = box.image
    if not isinstance(image, PackageImage):
        raise ImageError(
            f"the image of {box.name} comes from elsewhere: there is nothing to build",
            hint="its digest is in the spec, and is checked before the image is used",
        )
    recipe = obtain.recipe_of(box, packages)
    with lease.shared(recipe.key):
        stored = images.find(recipe.key)
        if stored is None:
            raise ImageError(f"the image {recipe.key[:12]} is not in the store", hint="`kimbox build` makes it")
        namespace.check()
        cache.ensure(image, recipe.locked, offline=offline)
        with images.workspace(AGAIN + recipe.key, busy="another kimbox is verifying this image") as work:
            (work / images.DONE).mkdir()
            started = time.monotonic()
            builder.build(recipe, work)
            build_s = time.monotonic() - started
            with log.step("comparing"):
                return _compared(recipe, stored.disk, work / images.DONE / images.DISKS["raw"], build_s)


def _compared(recipe: Recipe, stored: Path, built: Path, build_s: float) -> Verified:
    """Compares two disks of one recipe."""

    def report(done_bytes: int) -> None:
        log.now(f"{size_words(done_bytes)} of {size_words(recipe.layout.size_bytes)}")

    found = compare.compare(stored, built, recipe.layout, on_bytes=report)
    stored_sha256 = compare.sha256_disk(stored, on_bytes=report)
    built_sha256 = compare.sha256_disk(built, on_bytes=report) if found else stored_sha256
    return Verified(recipe.key, stored_sha256, built_sha256, tuple(found), round(build_s, 1))
