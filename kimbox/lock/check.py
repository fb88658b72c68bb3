"""Compares a spec with its lock, and the lock with folders, mirrors and servers. Writes only to mirrors."""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox.errors import Problem
from kimbox.lock.git import submodules, tags
from kimbox.lock.git.command import GitError, GoneError, SignatureError
from kimbox.lock.git.history import between, rewritten
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.refs import COMMIT
from kimbox.lock.lockfile import Lock, PinnedRepository, disagreements, parse_lock, pinned_submodules
from kimbox.spec.model import Box, Repository
from kimbox.spec.nodes import Node


@attrs.frozen
class LockFaults:
    """The result of a check."""

    #: Faults of the lock: `kimbox lock` would change it, or a commit is not available.
    wrong: list[Problem] = attrs.field(factory=list)
    #: Texts about a lock without faults, for information.
    notes: list[str] = attrs.field(factory=list)


@attrs.frozen
class LockText:
    """A lock, and the tree with the line and column of each of its values."""

    path: Path
    lock: Lock
    tree: Node

    @classmethod
    def read(cls, path: Path) -> LockText:
        """Reads a lock file. Raises SpecError as `read_lock` does."""
        from kimbox.spec.parse import read_text

        return cls(path, *parse_lock(read_text(path), path))

    def problem(self, message: str, *keys: str, code: str | None = None) -> Problem:
        """A fault at the place of the key that `keys` lead to, or of the last existing key on the way there."""
        mark = self.tree.mark
        for depth, key in enumerate(keys):
            parent = self.tree.get(*keys[:depth])
            mark = parent.keys.get(key, mark) if parent else mark
        return Problem(str(self.path), mark.line, mark.column, message, code="lock-disagrees" if code is None else code)


def check(box: Box, text: LockText, *, image: str | None) -> LockFaults:
    """Compares spec, lock, folders and mirrors. Uses no network. `image` is the key of the spec's image, if known."""
    lock, found = text.lock, LockFaults()
    if lock.spec_digest != box.digest:
        found.wrong.append(text.problem(f"the spec has changed: its digest is {box.digest} now", "spec"))
    if image is not None and lock.image != image:
        words = f"the image is made from other inputs: its key is {image} now"
        if lock.spec_digest == box.digest:
            words += "; spec and packages did not change, so kimbox was updated"
            if lock.packages and lock.packages.chosen_digest is None:  # of an older kimbox, so an edit is not noticed
                words += f", or the lock was edited: check it with `git diff {text.path.name}` before `kimbox lock`"
        found.wrong.append(text.problem(words, "image"))
    apart = disagreements(box, lock)
    found.wrong.extend(text.problem(words, "repositories", name) for name, words in apart.items())
    for repository in box.repositories:
        if repository.name not in apart:
            _check_commit(repository, text, found)
    return found


def check_remote(box: Box, text: LockText) -> LockFaults:
    """Checks on the servers whether the locked commits are available, and whether the refs moved.

    Only a missing commit or signature is a fault. A moved tag, a force-pushed branch and a newer commit are notes.
    Raises GitError (`repository-unreachable`) if a server cannot be reached.
    """
    found = LockFaults()
    apart = disagreements(box, text.lock)
    for repository in box.repositories:
        if repository.name in apart or repository.is_folder:
            continue
        mirror, old = Mirror.of(repository), text.lock.repositories[repository.name]
        try:
            mirror.ensure(old.commit)
        except (GoneError, SignatureError) as error:
            found.wrong.append(text.problem(error.message, "repositories", repository.name, "commit", code=error.code))
        if not COMMIT.fullmatch(repository.ref):
            found.notes.extend(_compare_ref(mirror, repository, old))
        named = repository.ref.removeprefix("refs/tags/")  # this one is in the notes about the ref
        others = {name: tag for name, tag in old.tags.items() if name != named}
        found.notes.extend(tags.changed(mirror, others))
    return found


def _check_commit(repository: Repository, text: LockText, found: LockFaults) -> None:
    """Compares the locked commit with the folder, or with the mirror."""
    name, mirror = repository.name, Mirror.of(repository, offline=True)
    old = text.lock.repositories[name]
    if repository.is_folder:
        if (commit := mirror.present().commit) != old.commit:
            words = f"repository {name}: the folder {old.url} has changed: its content is commit {commit} now"
            found.wrong.append(text.problem(words, "repositories", name, "commit"))
        return
    held = mirror.held(old.commit)
    if held is None:
        found.notes.append(f"repository {name}: this machine has not fetched the locked commit {old.commit} yet")
    elif held.tree != old.tree:
        words = f"repository {name}: commit {old.commit} has the tree {held.tree}, and the lock has {old.tree}"
        found.wrong.append(text.problem(words, "repositories", name, "tree"))
    else:
        _check_signature(mirror, old, text, found)
        _check_submodules(mirror, old, text, found)


def _check_signature(mirror: Mirror, old: PinnedRepository, text: LockText, found: LockFaults) -> None:
    """Checks the required signature. If a tag may have it that is not in the mirror, this is a note, not a fault."""
    try:
        mirror.check_signature(old.commit)
    except SignatureError as error:
        if mirror.knows_tags(old.commit):
            found.wrong.append(text.problem(error.message, "repositories", mirror.name, "commit", code=error.code))
        else:
            found.notes.append(f"{error.message}; --remote asks for a signed tag")


def _check_submodules(mirror: Mirror, old: PinnedRepository, text: LockText, found: LockFaults) -> None:
    """Compares the submodules in the lock with those of the commit."""
    try:
        inner = pinned_submodules(submodules.collect(mirror, old.commit))
    except GitError as error:
        found.notes.append(error.message)
        return
    if inner != old.submodules:
        words = f"repository {mirror.name}: the submodules are not those of the commit {old.commit}"
        found.wrong.append(text.problem(words, "repositories", mirror.name, "submodules"))


def _compare_ref(mirror: Mirror, repository: Repository, old: PinnedRepository) -> list[str]:
    """Notes about the ref of a repository: the server lacks it, it was rewritten, or it is ahead of the lock."""
    try:
        now = mirror.resolve(repository.ref)
    except (GoneError, SignatureError) as error:
        return [error.message]
    if now.commit == old.commit:
        return []
    if what := rewritten(mirror, repository.ref, old.commit, now):
        return [what]
    ahead = between(repository.url, old.commit, now.commit)
    count = f"{ahead.came_count} commits" if ahead and ahead.came_count > 1 else "a commit"
    return [f"repository {repository.name}: {repository.ref} is {count} ahead of the lock, at {now.commit}"]
