"""Writes the lock of a project: for `up`, `build` and others if it is missing, for `kimbox lock` when pins move."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import ImageError, KimboxError, Problem, SpecError
from kimbox.image import obtain
from kimbox.image.inputs.provisioners import Provisioner
from kimbox.image.inputs.recipe import Recipe, requested
from kimbox.lock.apt.choose import choose
from kimbox.lock.apt.packages import ALL_PACKAGES, LockedPackages
from kimbox.lock.diff import LockDiff, diff
from kimbox.lock.git import submodules, tags
from kimbox.lock.git.command import GitError
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import (
    Lock,
    PinnedRepository,
    check_lock,
    differs,
    make_lock,
    pinned_submodules,
    read_lock,
    write_lock,
)
from kimbox.lock.varying import Varying
from kimbox.log import log
from kimbox.project import localuse
from kimbox.project.check import base_provisioners, check_lock_file, package_differences, raise_faults, recipe_for
from kimbox.project.pinned_scripts import check_scripts
from kimbox.project.project import Project
from kimbox.spec.load import load_box, place_of_package
from kimbox.spec.model import SETUP, Box, PackageImage
from kimbox.spec.schema import guess


@attrs.frozen
class Locked:
    """The lock of a project, with the mirrors and the recipe that follow from it on this host."""

    lock: Lock
    #: Mirrors that hold every commit of the lock. The key is the name of the repository; for a submodule,
    #: `submodules.key`.
    mirrors: dict[str, Mirror]
    #: How the image is built; None for an image that is not built here.
    recipe: Recipe | None
    #: Key of the image that spec and lock describe.
    image_key: str


def lock_for(project: Project) -> Locked:
    """Returns the lock of a project, with its mirrors and its recipe. If there is no lock, it is resolved and written.

    A frozen project never writes its lock. An offline project contacts no server. Raises SpecError if spec and lock
    disagree (if frozen: in any detail), GitError if a commit is not available.

    A project with settings (`--set`) has a lock of its own, in kimbox's home, which starts with the pins of the spec's.
    """
    if project.box.settings and project.lock_file is None:
        project = _with_settings(project)
    box, path = project.box, project.lock_path
    base = base_provisioners(box)
    previous = read_lock(path) if path.exists() else None
    differences = [*check_lock(box, previous), *package_differences(box, previous, base)] if previous else []
    if project.frozen:
        hint = "`kimbox lock` brings it up to date" + "; so does `kimbox up` without --locked" * (not differences)
        raise_faults(check_lock_file(project, base), hint)
    _warn_local(project)
    if differences:
        raise SpecError.at(
            path,
            "the lock does not match the spec: " + "; ".join(differences),
            code="lock-disagrees",
            hint=f"`kimbox lock` brings it up to date; `git diff {path.name}` then shows what changed",
            fields={"path": str(path)},
        )
    packages = _packages(box, previous, base, offline=project.offline)
    recipe = recipe_for(box, packages, base)
    key = obtain.key_of(box, recipe)
    new = make_lock(box, previous=previous, image=key, packages=packages, offline=project.offline)
    lock = previous if project.frozen and previous else new
    mirrors = _mirrors(project, lock)
    if not project.frozen and (previous is None or _may_have_other_scripts(previous, lock)):
        check_scripts(box, mirrors, {name: pin.commit for name, pin in lock.repositories.items()})
    if not project.frozen and lock != previous and write_lock(path, lock):
        log.info(f"{'wrote' if previous is None else 'updated'} {path}")
    return Locked(with_tags(lock, mirrors), mirrors, recipe, key)


def _with_settings(project: Project) -> Project:
    """Returns a project with settings, and with the path of its lock, which is written if it is missing.

    The lock in git stays that of the spec without settings. Pins that the settings add are chosen once for each lock of
    the spec. Raises SpecError if they are missing and the project is offline.
    """
    plain = lock_for(attrs.evolve(project, box=load_box(project.source, member=project.box.member))).lock
    key = hashlib.sha256("\n".join([plain.digest, *project.box.settings]).encode()).hexdigest()[:16]
    path = paths.locks_dir() / f"{project.name}.set-{key}.lock"
    changed = attrs.evolve(project, lock_file=path, frozen=False)
    box, base = project.box, base_provisioners(project.box)
    lock = read_lock(path) if path.exists() else plain
    if not (check_lock(box, lock) or package_differences(box, lock, base)):
        return changed
    if project.offline:
        raise SpecError.at(
            path,
            f"the settings of {project.name} need pins that the lock of its spec does not have",
            code="lock-disagrees",
            hint="run the command once without --offline",
            fields={"path": str(path)},
        )
    write_lock(path, plain)
    relock(changed, update=[])
    return changed


def with_tags(lock: Lock, mirrors: Mapping[str, Mirror]) -> Lock:
    """Returns a lock with the tags that are available, whose objects are then in the mirrors."""
    repositories = {
        name: attrs.evolve(pinned, tags=tags.available(mirrors[name], pinned.tags)) if pinned.tags else pinned
        for name, pinned in lock.repositories.items()
    }
    if repositories == lock.repositories:
        return lock
    return attrs.evolve(lock, repositories=repositories, frozen_digest=lock.digest)


def _may_have_other_scripts(previous: Lock, lock: Lock) -> bool:
    """Whether the scripts of the spec, or `setup` of its repository, may differ from those of the previous lock."""
    old, new = previous.repositories.get(SETUP), lock.repositories.get(SETUP)
    return (previous.spec_digest, old and old.commit) != (lock.spec_digest, new and new.commit)


def _warn_local(project: Project) -> None:
    """Warns once of each repository of this machine, outside of the spec's folder, that the box gets."""
    if found := localuse.new_repositories(project):
        for repository in found:
            log.warn(f"the box gets the repository {repository.name} of this machine: {repository.url}")
        localuse.remember(project)


def record_varying(project: Project, image_key: str, files: Varying) -> bool:
    """Writes the files that differ in each build of an image to the lock of a project. Returns whether it was written.

    Writes nothing if the lock is of another image now, because it was changed meanwhile.
    """
    lock = read_lock(project.lock_path)
    return lock.image == image_key and write_lock(project.lock_path, attrs.evolve(lock, varying=files))


def _mirrors(project: Project, lock: Lock) -> dict[str, Mirror]:
    """Returns the mirrors of all repositories and submodules, with the commits of the lock fetched.

    Raises SpecError if the lock has other submodules than a commit, GitError if a commit is not available.
    """
    repositories = project.box.repositories
    mirrors = {repository.name: Mirror.of(repository, offline=project.offline) for repository in repositories}
    for name, mirror in list(mirrors.items()):
        pinned = lock.repositories[name]
        mirror.ensure(pinned.commit)
        collected = submodules.collect(mirror, pinned.commit)
        if pinned_submodules(collected) != pinned.submodules:
            raise SpecError.at(
                project.lock_path,
                f"the submodules of {name} are not those of its commit",
                code="lock-disagrees",
                hint="`kimbox lock` corrects them",
                fields={"path": str(project.lock_path), "repository": name},
            )
        mirrors |= {submodules.key(name, inside): submodule.mirror for inside, submodule in collected.items()}
    return mirrors


def _as_committed(box: Box, lock: Lock) -> dict[str, PinnedRepository]:
    """The repositories of a lock, each with the tree and the submodules of its commit, as far as this host has it.

    They differ in a lock that was edited.
    """
    pinned = dict(lock.repositories)
    for repository in box.repositories:
        mirror, old = Mirror.of(repository, offline=True), pinned[repository.name]
        with contextlib.suppress(GitError):  # a mirror that lacks a submodule; `up` fetches and compares it
            if not repository.is_folder and (held := mirror.held(old.commit)):
                inner = pinned_submodules(submodules.collect(mirror, old.commit))
                pinned[repository.name] = attrs.evolve(old, tree=held.tree, submodules=inner)
    return pinned


def _packages(
    box: Box,
    previous: Lock | None,
    base: Sequence[Provisioner],
    update: Collection[str] | None = (),
    *,
    offline: bool = False,
) -> LockedPackages | None:
    """Returns the packages of a box's image; None for an image that is not built here. `update` as for `choose`."""
    if not isinstance(box.image, PackageImage):
        return None
    old = previous.packages if previous else None
    try:
        return choose(box.image, requested(box.image, base), old, update=update, offline=offline)
    except ImageError as error:
        if error.code != "package-not-found":
            raise
        raise _missing_packages(box, error) from None


def _missing_packages(box: Box, error: ImageError) -> SpecError:
    """The error for packages that cannot be chosen, at the place of each one that does not exist, or of the list."""
    listed = box.image.packages if isinstance(box.image, PackageImage) else ()
    names = [name for name in error.fields.get("packages", "").split() if name in listed]
    problems = []
    for name in names or [""]:
        mark = place_of_package(box.source, name, box.member)
        message = f"there is no package {name} for this suite" if name else error.message
        meant = error.fields.get(f"similar.{name}")
        hint = f"did you mean {meant}?" if meant else error.hint
        problems.append(Problem(mark.file, mark.line, mark.column, message, hint, code=error.code))
    return SpecError(problems, code=error.code, fields=error.fields)


@attrs.frozen
class Relocked:
    """What `relock` changed; with `dry_run`, what it would change."""

    path: Path
    #: Pins that are new or have moved: name -> old commit, new commit. The old commit of a new pin is None.
    moved: dict[str, tuple[str | None, str]]
    #: Repositories that are no longer in the lock.
    removed: list[str]
    #: Whether the file was created or changed, or would be. It also changes if the spec or the image changes.
    is_written: bool
    #: Number of packages in the lock.
    packages: int = attrs.field(default=0, eq=False)
    #: The date of these packages; None if there are none.
    packages_as_of: str | None = attrs.field(default=None, eq=False)
    #: Differences from the previous lock; None if there was none.
    diff: LockDiff | None = attrs.field(default=None, eq=False)
    #: Tags that were moved and branches that were force-pushed.
    warnings: list[str] = attrs.field(factory=list, eq=False)


def relock(project: Project, *, update: list[str] | None, dry_run: bool = False) -> Relocked:
    """Brings the lock up to date with the spec, and updates the repositories and packages in `update` (None: all).

    `dry_run` writes no lock. Raises KimboxError for a name that is neither a repository nor a package.
    """
    box, path = project.box, project.lock_path
    base = base_provisioners(box)
    _warn_local(project)
    previous = read_lock(path) if path.exists() else None
    warnings: list[str] = []
    repositories, packages = _split(box, previous, update)
    with log.step(f"pinning {len(box.repositories)} repositories"):
        faults: list[Problem] = []
        chosen, key = None, None
        try:
            chosen = _packages(box, previous, base, packages)
            key = obtain.key_of(box, recipe_for(box, chosen, base))
        except SpecError as error:  # the repositories may have faults, too, and one run reports all of them
            faults += error.problems
        try:
            lock = make_lock(
                box, previous=previous, update=repositories, image=key, packages=chosen, warn=warnings.append
            )
        except SpecError as error:
            faults += error.problems
        else:
            lock = attrs.evolve(lock, repositories=_as_committed(box, lock))
        if faults:
            codes = {problem.code for problem in faults}
            raise SpecError(faults, code=codes.pop() if len(codes) == 1 else "bad-spec")
        if pin := lock.repositories.get(SETUP):
            mirrors = {r.name: Mirror.of(r) for r in box.repositories if r.name == SETUP}
            mirrors[SETUP].ensure(pin.commit)
            check_scripts(box, mirrors, {SETUP: pin.commit})
        else:
            check_scripts(box, {}, {})
    old = previous.repositories if previous else {}
    moved = {
        name: (old[name].commit if name in old else None, pin.commit)
        for name, pin in lock.repositories.items()
        if name not in old or old[name].commit != pin.commit
    }
    removed = sorted(set(old) - set(lock.repositories))
    is_written = differs(path, lock) if dry_run else write_lock(path, lock)
    count = len(chosen.versions) if chosen else 0
    return Relocked(
        path,
        moved,
        removed,
        is_written,
        packages=count,
        packages_as_of=chosen.as_of if chosen else None,
        diff=diff(previous, lock) if previous else None,
        warnings=warnings,
    )


def _split(box: Box, previous: Lock | None, update: list[str] | None) -> tuple[list[str] | None, list[str] | None]:
    """Splits the names in `update` into repositories and packages. None and None if `update` is None: all of both.

    Raises KimboxError for a name that is neither.
    """
    if update is None:
        return None, None
    known = {ALL_PACKAGES, *(previous.packages.versions if previous and previous.packages else ())}
    known |= set(box.image.packages) if isinstance(box.image, PackageImage) else set()  # also those not locked yet
    repositories = [name for name in update if box.repository(name)]
    packages = [name for name in update if not box.repository(name) and name in known]
    if unknown := sorted(set(update) - set(repositories) - set(packages)):
        names = [repository.name for repository in box.repositories]
        raise KimboxError(
            f"the box {box.name} has no repository or package {', '.join(unknown)}",
            code="pin-not-found",
            fields={"box": box.name, "names": " ".join(unknown)},
            hint=guess(unknown[0], [*names, *sorted(known)]),
        )
    return repositories, packages
