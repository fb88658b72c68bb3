"""Makes the lock of a project: for `up` and the like where it is missing, for `kimbox lock` when pins move."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import attrs

from kimbox.errors import KimboxError, SpecError
from kimbox.image import obtain
from kimbox.image.inputs.provisioners import Provisioner
from kimbox.image.inputs.recipe import Recipe, requested
from kimbox.lock.apt.choose import choose
from kimbox.lock.apt.packages import ALL_PACKAGES, LockedPackages
from kimbox.lock.diff import LockDiff, diff
from kimbox.lock.git import submodules
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock, check_lock, differs, make_lock, pinned_submodules, read_lock, write_lock
from kimbox.log import log
from kimbox.project.check import base_parts, check_lock_file, check_packages, recipe_for, refuse
from kimbox.project.project import Project
from kimbox.spec.model import Box, PackageImage
from kimbox.spec.schema import guess


@attrs.frozen
class Locked:
    """The lock of a project, and what it comes to on this host."""

    lock: Lock
    #: They hold every commit that the lock names: by the name of the repository, a submodule by `submodules.key`.
    mirrors: dict[str, Mirror]
    #: How the image is built; None for an image that is not built here.
    recipe: Recipe | None
    #: Key of the image that spec and lock describe.
    image_key: str


def lock_for(project: Project) -> Locked:
    """The lock of a project, made now if there is none, with the mirrors and the recipe that follow from it.

    Where the project is frozen the lock is never written; where it is offline no server is contacted. Raises SpecError
    if spec and lock disagree (where frozen, in anything), GitError if a commit cannot be had.
    """
    box, path = project.box, project.lock_path
    parts = base_parts(box)
    if project.frozen:
        hint = "`kimbox lock` brings it up to date; without --locked, `kimbox up` does"
        refuse(check_lock_file(project, parts), hint)
    previous = read_lock(path) if path.exists() else None
    if previous and (wrong := [*check_lock(box, previous), *check_packages(box, previous, parts)]):
        hint = f"`kimbox lock` brings it up to date; see what moved with `git diff {path.name}`"
        raise SpecError.at(path, "it does not fit the spec any more: " + "; ".join(wrong), hint=hint)
    packages = _packages(box, previous, parts, offline=project.offline)
    recipe = recipe_for(box, packages, parts)
    key = obtain.key_of(box, recipe)
    made = make_lock(box, previous=previous, image=key, packages=packages, offline=project.offline)
    lock = previous if project.frozen and previous else made
    mirrors = {repository.name: Mirror.of(repository, offline=project.offline) for repository in box.repositories}
    for name, mirror in list(mirrors.items()):
        pinned = lock.repositories[name]
        mirror.ensure(pinned.commit)
        inner = submodules.collect(mirror, pinned.commit)
        if pinned_submodules(inner) != pinned.submodules:
            hint = f"`kimbox lock --update {name}` writes them anew"
            raise SpecError.at(path, f"the submodules of {name} are not those of its commit", hint=hint)
        mirrors |= {submodules.key(name, inside): submodule.mirror for inside, submodule in inner.items()}
    if not project.frozen and write_lock(path, lock):
        log.info(f"{'wrote' if previous is None else 'updated'} {path}")
    return Locked(lock, mirrors, recipe, key)


def _packages(
    box: Box,
    previous: Lock | None,
    parts: Sequence[Provisioner],
    update: Collection[str] | None = (),
    *,
    offline: bool = False,
) -> LockedPackages | None:
    """The packages of a box's image; None for an image that is not built here. See `choose`."""
    if not isinstance(box.image, PackageImage):
        return None
    old = previous.packages if previous else None
    return choose(box.image, requested(box.image, parts), old, update=update, offline=offline)


@attrs.frozen
class Relocked:
    """What `relock` did; with `dry_run`, what it would do."""

    path: Path
    #: Pins that are new or have moved: name -> old commit, new commit.
    moved: dict[str, tuple[str | None, str]]
    #: Repositories that the lock no longer names.
    removed: list[str]
    #: Whether the file was made or changed, or would be. It changes with the spec and the image, too.
    is_written: bool
    #: How many packages the lock names.
    packages: int = attrs.field(default=0, eq=False)
    #: How it differs from the previous lock, if there was one.
    diff: LockDiff | None = attrs.field(default=None, eq=False)
    #: Tags that were moved and branches that were force-pushed.
    warnings: list[str] = attrs.field(factory=list, eq=False)


def relock(project: Project, *, update: list[str] | None, dry_run: bool = False) -> Relocked:
    """Makes the lock fit the spec, moving the repositories and packages named in `update` (None: all).

    `dry_run` writes no lock. Raises KimboxError for a name that is neither.
    """
    box, path = project.box, project.lock_path
    parts = base_parts(box)
    previous = read_lock(path) if path.exists() else None
    warnings: list[str] = []
    repositories, packages = _split(box, previous, update)
    with log.step(f"pinning {len(box.repositories)} repositories"):
        chosen = _packages(box, previous, parts, packages)
        key = obtain.key_of(box, recipe_for(box, chosen, parts))
        lock = make_lock(box, previous=previous, update=repositories, image=key, packages=chosen, warn=warnings.append)
    old = previous.repositories if previous else {}
    moved = {
        name: (old[name].commit if name in old else None, pin.commit)
        for name, pin in lock.repositories.items()
        if name not in old or old[name].commit != pin.commit
    }
    removed = sorted(set(old) - set(lock.repositories))
    is_written = differs(path, lock) if dry_run else write_lock(path, lock)
    count = len(chosen.versions) if chosen else 0
    return Relocked(path, moved, removed, is_written, count, diff(previous, lock) if previous else None, warnings)


def _split(box: Box, previous: Lock | None, update: list[str] | None) -> tuple[list[str] | None, list[str] | None]:
    """Which of the names are repositories, and which packages."""
    if update is None:
        return None, None
    known = {ALL_PACKAGES, *(previous.packages.versions if previous and previous.packages else ())}
    repositories = [name for name in update if box.repository(name)]
    packages = [name for name in update if not box.repository(name) and name in known]
    if unknown := sorted(set(update) - set(repositories) - set(packages)):
        names = [repository.name for repository in box.repositories]
        raise KimboxError(
            f"the box {box.name} has no repository or package {', '.join(unknown)}",
            hint=guess(unknown[0], [*names, *sorted(known)]),
        )
    return repositories, packages
