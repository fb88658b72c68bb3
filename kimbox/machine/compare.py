"""What two locks, or a lock and a box, differ in: each side found by the words of a user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from kimbox.errors import KimboxError, SpecError, StateError
from kimbox.lock import history
from kimbox.lock.diff import Kind, LockDiff, diff
from kimbox.lock.gitrun import GitError, git
from kimbox.lock.history import Between
from kimbox.lock.lockfile import MAX_LOCK_BYTES, Lock, parse_lock, read_lock
from kimbox.machine import ran
from kimbox.machine.folder import Machine
from kimbox.machine.pins import lock_path
from kimbox.spec.model import Box
from kimbox.spec.nodes import Fault
from kimbox.spec.rules import box_name


@attrs.frozen
class Side:
    """A lock, and how messages name where it came from."""

    name: str
    lock: Lock


@attrs.frozen
class Compared:
    """Two sides, what differs, and the commits between for each repository that moved."""

    old: Side
    new: Side
    diff: LockDiff
    logs: Mapping[str, Between | None]


def compare(old: Side, new: Side) -> Compared:
    """Compares two sides; the logs come from this machine's mirrors."""
    found = diff(old.lock, new.lock)
    return Compared(old, new, found, logs(found))


def logs(found: LockDiff) -> dict[str, Between | None]:
    """The commits between, for each repository that moved; a folder has no history."""
    return {
        change.name: history.between(change.new.url, change.old.commit, change.new.commit)
        for change in found.repositories
        if change.kind is Kind.MOVED and change.old and change.new and not change.is_folder
    }


def named(word: str) -> Side:
    """The side that a word means: the file of a lock, REV:PATH of the git repository around, or the name of a box.

    Raises SpecError for a file that is no lock, StateError if it is none of them.
    """
    path = Path(word)
    if _is_file(path) or (word.endswith(".lock") and ":" not in word):
        return Side(word, read_lock(path))
    if ":" in word:
        return Side(word, _from_git(word))
    try:
        machine = Machine(box_name(word))
    except Fault:
        raise StateError(f"{word} is neither a lock file, nor REV:PATH in git, nor the name of a box") from None
    if not machine.exists:
        raise StateError(f"there is no lock file and no box {word}", hint="`kimbox list` shows the boxes")
    return of_box(machine)


def of_box(machine: Machine) -> Side:
    """What a box runs."""
    return Side(f"the box {machine.name}", ran.lock_of(machine))


def of_spec(box: Box, *, shipped: bool) -> Side:
    """The lock of a spec. Raises SpecError if there is none."""
    path = lock_path(box, shipped=shipped)
    if not path.exists():
        raise SpecError.at(path, "there is no lock", hint="`kimbox lock` makes it")
    return Side(str(path), read_lock(path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file at all
        return False


def _from_git(word: str) -> Lock:
    """A lock as a commit of the git repository around has it."""
    try:
        blob = git(["rev-parse", "--verify", "--quiet", "--end-of-options", word]).text
        data = git(["cat-file", "blob", blob]).stdout
    except GitError:
        hint = "REV is a branch, tag or commit; PATH starts at the top of the repository, or with ./ here"
        raise StateError(f"git has no {word} here", hint=hint) from None
    if len(data) > MAX_LOCK_BYTES:
        raise KimboxError(f"{word} is larger than {MAX_LOCK_BYTES >> 20} MiB, so it is no lock")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise SpecError.at(word, "this is no text, so it is no lock") from None
    return parse_lock(text, Path(word))[0]
