"""The lock of a box: where it lies, and how `up` comes to it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, SpecError, StateError
from kimbox.image import obtain
from kimbox.image.inputs import recipe
from kimbox.lock.apt.choose import choose
from kimbox.lock.apt.packages import ALL_PACKAGES, LockedPackages
from kimbox.lock.check import LockFaults, LockText, check, check_remote
from kimbox.lock.diff import LockDiff, diff
from kimbox.lock.git import submodules
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock, check_lock, differs, make_lock, pinned_submodules, read_lock, write_lock
from kimbox.log import log
from kimbox.spec.model import Box, PackageImage
from kimbox.spec.schema import guess


def lock_path(box: Box, *, shipped: bool) -> Path:
    """Beside the spec (`kimbox.yaml` -> `kimbox.lock`); for a shipped box, whose folder is not the user's, at home."""
    return paths.locks_dir() / f"{box.name}.lock" if shipped else box.source.with_suffix(".lock")


def lock_for(box: Box, *, shipped: bool, frozen: bool = False, offline: bool = False) -> tuple[Lock, dict[str, Mirror]]:
    """The lock of a box, made now if there is none, and the mirrors that hold every commit it names: by the name of the
    repository, and for a submodule by `submodules.key`.

    Where `frozen` the lock is used as it stands and never written. Where `offline` no server is asked. Raises SpecError
    if spec and lock disagree (where `frozen`, in anything), GitError if a commit is nowhere to be had.
    """
    path = lock_path(box, shipped=shipped)
    if frozen:
        _refuse(check_lock_file(path, box), "`kimbox lock` brings it up to date; without --locked, `kimbox up` does")
    previous = read_lock(path) if path.exists() else None
    if previous and (wrong := [*check_lock(box, previous), *check_packages(box, previous)]):
        hint = f"`kimbox lock` brings it up to date; see what moved with `git diff {path.name}`"
        raise SpecError.at(path, "it does not fit the spec any more: " + "; ".join(wrong), hint=hint)
    packages = _packages(box, previous, offline=offline)
    key = obtain.key_of(box, packages)
    made = make_lock(box, previous=previous, image=key, packages=packages, offline=offline)
    lock = previous if frozen and previous else made
    mirrors = {repository.name: Mirror.of(repository, offline=offline) for repository in box.repositories}
    for name, mirror in list(mirrors.items()):
        pinned = lock.repositories[name]
        mirror.ensure(pinned.commit)
        inner = submodules.collect(mirror, pinned.commit)
        if pinned_submodules(inner) != pinned.submodules:
            hint = f"`kimbox lock --update {name}` writes them anew"
            raise SpecError.at(path, f"the submodules of {name} are not those of its commit", hint=hint)
        mirrors |= {submodules.key(name, inside): submodule.mirror for inside, submodule in inner.items()}
    if frozen:
        return lock, mirrors
    if write_lock(path, lock):
        log.info(f"{'wrote' if previous is None else 'updated'} {path}")
    return lock, mirrors


def check_lock_file(path: Path, box: Box) -> LockFaults:
    """Compares the lock at `path` with its spec and with what this machine has. Raises SpecError if there is none."""
    if not path.exists():
        raise SpecError.at(path, "there is no lock", hint="`kimbox lock` makes it; keep it in git beside the spec")
    text = LockText.read(path)
    if wrong := check_packages(box, text.lock):
        found = check(box, text, image=None)
        return LockFaults([*found.wrong, *(text.problem(words, "packages", "request") for words in wrong)], found.notes)
    return check(box, text, image=obtain.key_of(box, text.lock.packages))


def check_packages(box: Box, lock: Lock) -> list[str]:
    """Where spec and lock disagree about the packages of the image, in words; empty if they agree."""
    if not isinstance(box.image, PackageImage):
        return ["the lock has packages, and the image is not built from any"] if lock.packages else []
    if lock.packages is None:
        return ["the lock names no packages, and the image is built from some"]
    if lock.packages.request != recipe.request(box.image):
        return ["the image asks for other packages than the lock was made for"]
    return []


def image_key(box: Box, *, shipped: bool) -> str:
    """The key of the image of a box that has a lock. Raises StateError if it has none."""
    path = lock_path(box, shipped=shipped)
    if not path.exists():
        raise StateError(f"{box.name} has no lock yet, and no image", hint="`kimbox up` or `kimbox build` makes both")
    return obtain.key_of(box, read_lock(path).packages)


def _packages(
    box: Box, previous: Lock | None, update: Collection[str] | None = (), *, offline: bool = False
) -> LockedPackages | None:
    """The packages of a box's image; None for an image from elsewhere. See `choose`."""
    if not isinstance(box.image, PackageImage):
        return None
    old = previous.packages if previous else None
    return choose(box.image, recipe.requested(box.image), old, update=update, offline=offline)


def verify_lock(box: Box, *, shipped: bool, remote: bool) -> tuple[Path, list[str]]:
    """Checks the lock of a box, and with `remote` also against the servers; writes nothing.

    Returns the file, and what should be told of a lock that stands. Raises SpecError, with every fault, for another.
    """
    path = lock_path(box, shipped=shipped)
    found = check_lock_file(path, box)
    notes = list(found.notes)
    if remote:
        asked = check_remote(box, LockText.read(path))
        found, notes = LockFaults(found.wrong + asked.wrong), asked.notes
    for note in notes if found.wrong else []:
        log.warn(note)
    _refuse(found, "`kimbox lock` brings it up to date; `kimbox lock --update NAME` takes a new commit")
    return path, notes


def _refuse(found: LockFaults, hint: str) -> None:
    if found.wrong:
        raise SpecError(found.wrong, hint=hint)


@attrs.frozen
class Relocked:
    """What `relock` did, or would do."""

    path: Path
    #: Pins that are new or others than before: name -> old commit, new commit.
    moved: dict[str, tuple[str | None, str]]
    #: Repositories that the lock names no more.
    removed: list[str]
    #: Whether the file was made or changed, or would be; it also holds digests of the spec and the key of the image.
    is_written: bool
    #: How many packages the lock names.
    packages: int = attrs.field(default=0, eq=False)
    #: What differs from the lock before, if there was one.
    diff: LockDiff | None = attrs.field(default=None, eq=False)
    #: Tags that were moved and branches that were force-pushed.
    warnings: list[str] = attrs.field(factory=list, eq=False)


def relock(box: Box, *, shipped: bool, update: list[str] | None, dry_run: bool = False) -> Relocked:
    """Makes the lock fit the spec, moving the repositories and packages named in `update` (None: all).

    `dry_run` writes no lock. Raises KimboxError for a name that is neither.
    """
    path = lock_path(box, shipped=shipped)
    previous = read_lock(path) if path.exists() else None
    warnings: list[str] = []
    repositories, packages = _split(box, previous, update)
    with log.step(f"pinning {len(box.repositories)} repositories"):
        chosen = _packages(box, previous, packages)
        key = obtain.key_of(box, chosen)
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
