"""Builds an image a second time from its spec and lock, and compares the two byte by byte."""

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
WORKSPACE_PREFIX = "verify-"


@attrs.frozen
class Verified:
    """The result of `verify`: the sha256 hex digests of both disks, and where the disks differ."""

    key: str
    stored_sha256: str
    built_sha256: str
    differences: tuple[Difference, ...]
    #: Duration of the second build.
    build_s: float


def verify(box: Box, packages: LockedPackages | Recipe | None, *, offline: bool = False) -> Verified:
    """Builds the image of a box a second time, beside the one in the store, compares both, and removes the second.

    `packages`: the packages of the box's lock, or the recipe that was made from them. `offline`: no server is
    contacted. Raises ImageError if the image is not built by kimbox or not in the store, or if the second build fails.
    """
    image = box.image
    if not isinstance(image, PackageImage):
        raise ImageError(
            f"cannot verify {box.name}: kimbox does not build its image from packages",
            code="image-not-built-here",
            hint="kimbox compares the digest of such an image with the spec when it adds the image to the store",
            fields={"name": box.name},
        )
    recipe = obtain.recipe_of(box, packages)
    with lease.shared(recipe.key):
        stored = images.find(recipe.key)
        if stored is None:
            raise ImageError(
                f"the image {recipe.key[:12]} of {box.name} is not in the store",
                code="image-not-found",
                hint="`kimbox build` builds it",
                fields={"name": box.name, "image": recipe.key},
            )
        with log.step("checking the image in the store"):
            images.check(stored)
        namespace.check()
        cache.ensure(image, recipe.locked, offline=offline)
        busy = "another kimbox process is verifying this image"
        with images.workspace(WORKSPACE_PREFIX + recipe.key, busy=busy) as work:
            (work / images.DONE).mkdir()
            started = time.monotonic()
            builder.build(recipe, work)
            build_s = time.monotonic() - started
            with log.step("comparing the images"):
                return _compared(recipe, stored.disk, work / images.DONE / images.DISKS["raw"], build_s)


def _compared(recipe: Recipe, stored: Path, built: Path, build_s: float) -> Verified:
    """The result of a comparison of two disks of one recipe."""

    def report(done_bytes: int) -> None:
        log.now(f"{size_words(done_bytes)} of {size_words(recipe.layout.size_bytes)}")

    differences = compare.compare(stored, built, recipe.layout, on_bytes=report)
    stored_sha256 = compare.sha256_disk(stored, on_bytes=report)
    built_sha256 = compare.sha256_disk(built, on_bytes=report) if differences else stored_sha256
    return Verified(recipe.key, stored_sha256, built_sha256, tuple(differences), round(build_s, 1))
