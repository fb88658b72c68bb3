"""Builds an image a second time from its spec and lock, and compares the two byte by byte."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
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
from kimbox.lock import varying
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.varying import Varying
from kimbox.log import log
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.spec.model import Box, PackageImage

#: Prefixes of the names of the workspaces in which the image is built a second and a third time.
WORKSPACE_PREFIX = "verify-"
AGAIN_PREFIX = "verify-again-"


class Outcome(StrEnum):
    """The result of a comparison."""

    SAME = "same"
    #: Only files differ that the lock lists: they differ in each build.
    EXPECTED = "expected"
    DIFFERENT = "different"


@attrs.frozen
class Verified:
    """The result of `verify`: the sha256 hex digests of both disks, and where the disks differ."""

    key: str
    stored_sha256: str
    built_sha256: str
    differences: tuple[Difference, ...]
    #: Duration of the second build.
    build_s: float
    #: The files that differ in each build: those of the lock and, with `deep`, those that this call found.
    varying: Varying = attrs.field(factory=dict)
    #: Files and parts of the disk that differ although `varying` does not list them.
    unexpected: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        if self.unexpected:
            return Outcome.DIFFERENT
        return Outcome.EXPECTED if self.differences else Outcome.SAME


def verify_project(project: Project, *, deep: bool = False) -> tuple[Verified, bool]:
    """Verifies the image of a project. With `deep`, writes the files that differ in each build to the lock.

    Returns the result, and whether the lock was written. Raises the errors of `pins.lock_for` and `verify`.
    """
    locked = pins.lock_for(project)
    known = locked.lock.varying
    verified = verify(project.box, locked.recipe, known=known, deep=deep, offline=project.offline)
    is_new = verified.varying != known
    return verified, is_new and pins.record_varying(project, verified.key, verified.varying)


def verify(
    box: Box,
    packages: LockedPackages | Recipe | None,
    *,
    known: Varying | None = None,
    deep: bool = False,
    offline: bool = False,
) -> Verified:
    """Builds the image of a box a second time, beside the one in the store, compares both, and removes the second.

    `packages`: the packages of the box's lock, or the recipe that was made from them. `known`: the files that may
    differ. `deep`: if there are differences, the image is built once more. A file that differs between these two new
    builds differs in each build. A file that differs only from the stored image was changed, and is never accepted.
    `offline`: no server is contacted.

    Raises ImageError if the image is not built by kimbox or not in the store, or if a build fails.
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
            started = time.monotonic()
            built = _build(recipe, work)
            build_s = round(time.monotonic() - started, 1)
            with log.step("comparing the images"):
                differences = _compare(recipe, stored.disk, built)
                stored_sha256 = compare.sha256_disk(stored.disk)
                built_sha256 = compare.sha256_disk(built) if differences else stored_sha256
            between: list[Difference] = []
            if deep and differences:
                with images.workspace(AGAIN_PREFIX + recipe.key, busy=busy) as again:
                    third = _build(recipe, again)
                    with log.step("comparing the two new images"):
                        between = _compare(recipe, built, third)
    files, unexpected = _judged(differences, between, known or {})
    return Verified(recipe.key, stored_sha256, built_sha256, tuple(differences), build_s, files, unexpected)


def _build(recipe: Recipe, work: Path) -> Path:
    """Builds an image in a workspace. Returns its disk."""
    (work / images.DONE).mkdir()
    builder.build(recipe, work)
    return work / images.DONE / images.DISKS["raw"]


def _compare(recipe: Recipe, old: Path, new: Path) -> list[Difference]:
    """Compares two disks of one recipe."""

    def report(done_bytes: int) -> None:
        log.now(f"{size_words(done_bytes)} of {size_words(recipe.layout.size_bytes)}")

    return compare.compare(old, new, recipe.layout, on_bytes=report)


def _judged(
    differences: Sequence[Difference], between: Sequence[Difference], known: Varying
) -> tuple[Varying, tuple[str, ...]]:
    """Returns the files that differ in each build, and what else differs.

    `between`: the differences between two new builds. If a lock cannot list the files, they count as unexpected.
    """
    found = varying.joined(known, _files(between))
    files = found if varying.is_listable(found) else known
    parts = dict.fromkeys(d.part for d in (*differences, *between) if not d.files)
    paths = varying.unexpected(files, {**_files(between), **_files(differences)})
    return files, (*parts, *paths)


def _files(differences: Sequence[Difference]) -> Mapping[str, tuple[str, ...]]:
    """Returns the files of all parts, with the aspects that differ."""
    return {path: aspects for difference in differences for path, aspects in difference.files.items()}
