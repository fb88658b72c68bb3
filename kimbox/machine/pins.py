"""The lock of a box: where it lies, and how `up` comes to it."""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import SpecError
from kimbox.image import store
from kimbox.lock.lockfile import Lock, check_lock, make_lock, read_lock, write_lock
from kimbox.lock.mirror import Mirror
from kimbox.log import log
from kimbox.spec.model import Box


def lock_path(box: Box, *, shipped: bool) -> Path:
    """Beside the spec (`kimbox.yaml` -> `kimbox.lock`); for a shipped box, whose folder is not the user's, at home."""
    return paths.locks_dir() / f"{box.name}.lock" if shipped else box.source.with_suffix(".lock")


def lock_for(box: Box, *, shipped: bool) -> tuple[Lock, dict[str, Mirror]]:
    """The lock of a box, made now if there is none, and the mirrors that hold every commit it names.

    Raises SpecError if spec and lock disagree, GitError if a commit is nowhere to be had.
    """
    path = lock_path(box, shipped=shipped)
    previous = read_lock(path) if path.exists() else None
    if previous and (wrong := check_lock(box, previous)):
        hint = f"`kimbox lock` brings it up to date; see what moved with `git diff {path.name}`"
        raise SpecError.at(path, "it does not fit the spec any more: " + "; ".join(wrong), hint=hint)
    lock = make_lock(box, previous=previous, image=store.key_of(box))
    mirrors = {repository.name: Mirror.of(repository) for repository in box.repositories}
    for name, mirror in mirrors.items():
        mirror.ensure(lock.repositories[name].commit)
    if write_lock(path, lock):
        log.info(f"{'wrote' if previous is None else 'updated'} {path}")
    return lock, mirrors


@attrs.frozen
class Relocked:
    """What `relock` did."""

    path: Path
    #: Pins that are new or others than before: name -> old commit, new commit.
    moved: dict[str, tuple[str | None, str]]
    #: Repositories that the lock names no more.
    removed: list[str]
    #: Whether the file was made or changed; it also holds digests of the spec and the key of the image.
    is_written: bool


def relock(box: Box, *, shipped: bool, update: list[str] | None) -> Relocked:
    """Makes the lock fit the spec, moving the pins named in `update` (None: all)."""
    path = lock_path(box, shipped=shipped)
    previous = read_lock(path) if path.exists() else None
    with log.step(f"pinning {len(box.repositories)} repositories"):
        lock = make_lock(box, previous=previous, update=update, image=store.key_of(box))
    old = previous.repositories if previous else {}
    moved = {
        name: (old[name].commit if name in old else None, pin.commit)
        for name, pin in lock.repositories.items()
        if name not in old or old[name].commit != pin.commit
    }
    return Relocked(path, moved, sorted(set(old) - set(lock.repositories)), write_lock(path, lock))
