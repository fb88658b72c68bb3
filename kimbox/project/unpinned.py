"""Repositories that run in a box in place of locked ones: a working copy, or another ref. The lock is not changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from kimbox.errors import SpecError, UsageError
from kimbox.lock.git import submodules
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import (
    Lock,
    PinnedRepository,
    PinnedSubmodule,
    disagreements,
    locked_url,
    pinned_submodules,
    read_lock,
)
from kimbox.log import log
from kimbox.project.project import Project
from kimbox.spec.model import Box, Repository
from kimbox.spec.schema import guess

_WORD = re.compile(r"([^=@]+)([=@])(.+)", re.DOTALL)


@attrs.frozen
class Instead:
    """What runs in place of a locked repository: a folder, or another ref of the same URL."""

    name: str
    folder: Path | None
    ref: str | None

    @classmethod
    def parse(cls, word: str) -> Instead:
        """From NAME=FOLDER or NAME@REF. Raises UsageError for anything else."""
        match = _WORD.fullmatch(word)
        if not match:
            hint = "write --repo setup=./work for a working copy, --repo setup@BRANCH for another branch or commit"
            raise UsageError(f"--repo {word[:100]} is neither NAME=FOLDER nor NAME@REF", hint=hint)
        name, sign, rest = match.groups()
        return cls(name, Path(rest), None) if sign == "=" else cls(name, None, rest)

    def pin(self, box: Box, repository: Repository) -> tuple[PinnedRepository, dict[str, Mirror]]:
        """Its present commit, and the mirrors that have it. Raises GitError if there is none."""
        if self.folder is not None:
            work = attrs.evolve(repository, url=str(self.folder.expanduser().absolute()), is_folder=True, ref="HEAD")
            mirror = Mirror.of(work)
            pin = mirror.resolve_work_tree()
        else:
            work = attrs.evolve(repository, ref=self.ref or "HEAD")
            if repository.is_folder:
                hint = f"name a working copy: --repo {self.name}=FOLDER"
                raise UsageError(f"repository {self.name} is a folder, which has no branches or commits", hint=hint)
            mirror = Mirror.of(work)
            pin = mirror.resolve(work.ref)
        inner, mirrors = _with_submodules(mirror, pin.commit)
        return PinnedRepository(locked_url(box, work), work.ref, pin.commit, pin.tree, inner), mirrors


def _with_submodules(mirror: Mirror, commit: str) -> tuple[dict[str, PinnedSubmodule], dict[str, Mirror]]:
    """The submodules of a commit, and the mirrors of it and them, as `lock_for` has them."""
    inner = submodules.collect(mirror, commit)
    mirrors = {submodules.key(mirror.name, path): submodule.mirror for path, submodule in inner.items()}
    return pinned_submodules(inner), {mirror.name: mirror} | mirrors


def unpinned(project: Project, instead: Sequence[Instead]) -> tuple[Lock, dict[str, Mirror]]:
    """The lock of a project with other repositories in place of locked ones, and the mirrors.

    `Lock.unpinned` names these repositories.

    Raises UsageError for a repository that the box does not have, SpecError if there is no lock, or if the rest of it
    disagrees with the spec, GitError if a commit cannot be had.
    """
    box, path = project.box, project.lock_path
    known = [repository.name for repository in box.repositories]
    for one in instead:
        if one.name not in known:
            hint = guess(one.name, known) or "its spec names no repository"
            raise UsageError(f"the box {box.name} has no repository {one.name[:100]}", hint=hint)
    others = {one.name: one for one in instead}
    if not path.exists():
        raise SpecError.at(path, "there is no lock", hint="`kimbox up` makes it")
    lock = read_lock(path)
    if wrong := [text for name, text in disagreements(box, lock).items() if name not in others]:
        raise SpecError.at(path, "it does not fit the spec any more: " + "; ".join(wrong), hint="run `kimbox lock`")
    pinned: dict[str, PinnedRepository] = {}
    mirrors: dict[str, Mirror] = {}
    for repository in box.repositories:
        name = repository.name
        if name in others:
            pinned[name], more = others[name].pin(box, repository)
            log.info(
                f"repository {name}: commit {pinned[name].commit[:12]} of {pinned[name].url} in place of the lock's"
            )
        else:
            pinned[name], mirror = lock.repositories[name], Mirror.of(repository)
            mirror.ensure(pinned[name].commit)
            _, more = _with_submodules(mirror, pinned[name].commit)
        mirrors |= more
    names = tuple(name for name in known if name in others)
    return attrs.evolve(lock, repositories=pinned, unpinned=names, frozen_digest=lock.digest), mirrors
