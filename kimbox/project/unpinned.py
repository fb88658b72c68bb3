"""Replaces locked repositories for one command: by a working copy, or by another ref. The lock is not changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from kimbox.errors import SpecError, UsageError
from kimbox.lock.git import submodules, tags
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
from kimbox.project.pinned_scripts import commit_problems
from kimbox.project.project import Project
from kimbox.spec.model import SETUP, Box, Repository
from kimbox.spec.schema import guess

#: An argument of `--repo`: NAME=FOLDER or NAME@REF.
_ARGUMENT = re.compile(r"([^=@]+)([=@])(.+)", re.DOTALL)


@attrs.frozen
class Replacement:
    """The replacement of a locked repository: a folder, or another ref of the same URL."""

    #: Name of the repository that is replaced.
    name: str
    folder: Path | None
    ref: str | None

    @classmethod
    def parse(cls, argument: str) -> Replacement:
        """Parses NAME=FOLDER or NAME@REF. Raises UsageError for anything else."""
        match = _ARGUMENT.fullmatch(argument)
        if not match:
            hint = "write --repo setup=./work for a working copy, --repo setup@BRANCH for another branch or commit"
            message = f"--repo {argument[:100]} is neither NAME=FOLDER nor NAME@REF"
            raise UsageError(message, code="bad-value", hint=hint, fields={"option": "--repo"})
        name, sign, value = match.groups()
        return cls(name, Path(value), None) if sign == "=" else cls(name, None, value)

    def pin(self, box: Box, repository: Repository) -> tuple[PinnedRepository, dict[str, Mirror]]:
        """Returns the pin of the current commit, and its mirrors. Raises GitError if there is no commit."""
        if self.folder is not None:
            url = str(self.folder.expanduser().absolute())
            replaced = attrs.evolve(repository, url=url, is_folder=True, ref="HEAD")
            mirror = Mirror.of(replaced)
            pin = mirror.resolve_work_tree()
        else:
            if repository.is_folder:
                raise UsageError(
                    f"repository {self.name} is a folder: it has no branch or commit {(self.ref or '')[:100]}",
                    code="ref-not-found",
                    hint=f"use a working copy: --repo {self.name}=FOLDER",
                    fields={"repository": self.name, "ref": self.ref or ""},
                )
            replaced = attrs.evolve(repository, ref=self.ref or "HEAD")
            mirror = Mirror.of(replaced)
            pin = mirror.resolve(replaced.ref)
        pinned, mirrors = _with_submodules(mirror, pin.commit)
        near = tags.collect(mirror, pin.commit)
        return PinnedRepository(locked_url(box, replaced), replaced.ref, pin.commit, pin.tree, pinned, near), mirrors


def _with_submodules(mirror: Mirror, commit: str) -> tuple[dict[str, PinnedSubmodule], dict[str, Mirror]]:
    """Returns the pins of the submodules of a commit, and the mirrors of the repository and its submodules.

    The keys of the mirrors are those of `Locked.mirrors`.
    """
    collected = submodules.collect(mirror, commit)
    mirrors = {submodules.key(mirror.name, path): submodule.mirror for path, submodule in collected.items()}
    return pinned_submodules(collected), {mirror.name: mirror} | mirrors


def unpinned(project: Project, replacements: Sequence[Replacement]) -> tuple[Lock, dict[str, Mirror]]:
    """Returns the lock of a project with replaced repositories, and the mirrors.

    `Lock.unpinned` has the names of the replaced repositories.

    Raises UsageError for a repository that the box does not have, SpecError if there is no lock or if the rest of it
    does not match the spec, GitError if a commit is not available.
    """
    box, path = project.box, project.lock_path
    known = [repository.name for repository in box.repositories]
    for replacement in replacements:
        if replacement.name not in known:
            raise UsageError(
                f"the box {box.name} has no repository {replacement.name[:100]}",
                code="repository-not-found",
                hint=guess(replacement.name, known) or "its spec has no repositories",
                fields={"box": box.name, "repository": replacement.name},
            )
    replaced = {replacement.name: replacement for replacement in replacements}
    fields = {"path": str(path)}
    if not path.exists():
        raise SpecError.at(path, "lock not found", code="lock-not-found", hint="`kimbox lock` writes it", fields=fields)
    lock = read_lock(path)
    if differences := [text for name, text in disagreements(box, lock).items() if name not in replaced]:
        message = "the lock does not match the spec: " + "; ".join(differences)
        raise SpecError.at(path, message, code="lock-disagrees", hint="run `kimbox lock`", fields=fields)
    pinned: dict[str, PinnedRepository] = {}
    mirrors: dict[str, Mirror] = {}
    for repository in box.repositories:
        name = repository.name
        if name in replaced:
            pinned[name], repository_mirrors = replaced[name].pin(box, repository)
            if name == SETUP and (faults := commit_problems(box, repository_mirrors[name], pinned[name].commit)):
                raise SpecError(faults, code="bad-script")
            log.info(
                f"repository {name}: commit {pinned[name].commit[:12]} of {pinned[name].url} replaces that of the lock"
            )
        else:
            pinned[name], mirror = lock.repositories[name], Mirror.of(repository)
            mirror.ensure(pinned[name].commit)
            pinned[name] = attrs.evolve(pinned[name], tags=tags.available(mirror, pinned[name].tags))
            _, repository_mirrors = _with_submodules(mirror, pinned[name].commit)
        mirrors |= repository_mirrors
    names = tuple(name for name in known if name in replaced)
    return attrs.evolve(lock, repositories=pinned, unpinned=names, frozen_digest=lock.digest), mirrors
