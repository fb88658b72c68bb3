"""Compares two locks, or a lock and a box; finds each side from an argument of `kimbox diff`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from kimbox.actions.observe import provenance, reach, state
from kimbox.errors import KimboxError, SpecError, StateError
from kimbox.guest import stale
from kimbox.guest.stale import StaleStep
from kimbox.lock.apt import packages
from kimbox.lock.apt.packages import PackageChanges
from kimbox.lock.diff import Kind, LockDiff, diff
from kimbox.lock.git import history
from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.history import Between
from kimbox.lock.lockfile import MAX_LOCK_BYTES, Lock, parse_lock, read_lock
from kimbox.log import log
from kimbox.machine import delivered_locks
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.nodes import Fault
from kimbox.spec.rules import box_name

#: dpkg-query takes a second in an emulated guest.
LIST_TIMEOUT_S = 60.0

_LIST_PACKAGES = r"dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version} ${Architecture}\n'"

#: An installed package: name, version, architecture. Other lines of the guest's answer are ignored.
_PACKAGE = re.compile(
    r"^[uihrp][iWt][ R] +([a-z0-9][a-z0-9+.-]{0,99}) ([0-9][0-9A-Za-z.+:~-]{0,99}) ([a-z0-9-]{1,20})$", re.MULTILINE
)


@attrs.frozen
class Side:
    """A lock, and how messages name where it came from."""

    name: str
    lock: Lock
    #: Packages that a running box has in addition to its lock, or lacks; None where it does not answer.
    installed: PackageChanges | None = None
    #: Steps of a box that ran under other commits than those of its lock; None where the guest has not reported them.
    stale: Sequence[StaleStep] | None = None


@attrs.frozen
class Compared:
    """Two sides, what differs, and the commits between for each repository that moved."""

    old: Side
    new: Side
    diff: LockDiff
    logs: Mapping[str, Between | None]

    @property
    def differs(self) -> bool:
        """Whether the locks differ, or a box is not what its lock says."""
        return bool(self.diff or self.old.stale or self.new.stale)


def compare(old: Side, new: Side) -> Compared:
    """Compares two sides; the logs come from the mirrors on this host."""
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
    """The lock that a box runs, and, where it is open and answers, how its packages differ."""
    lock = delivered_locks.lock_of(machine)
    outdated = stale.steps(
        machine.name, provenance(machine, machine.boot_events()), sealed=machine.record().sealed is not None
    )
    return Side(f"the box {machine.name}", lock, _installed(machine, lock), outdated)


def _installed(machine: Machine, lock: Lock) -> PackageChanges | None:
    """How the packages of a box differ from its image; None where it does not answer."""
    if not lock.packages or not state(machine).reachable:
        return None
    from kimbox.guest.ssh import Guest

    try:
        with Guest(reach(machine)) as guest:
            answer = guest.run(_LIST_PACKAGES, timeout_s=LIST_TIMEOUT_S)
    except KimboxError as error:
        log.detail(f"{machine.name} cannot be asked for its packages: {error}")
        return None
    found = {name: (version, of) for name, version, of in _PACKAGE.findall(answer.stdout)}
    return packages.compare(lock.packages.versions, lock.packages.as_installed(found).versions)


def of_spec(project: Project) -> Side:
    """The lock of a spec. Raises SpecError if there is none."""
    path = project.lock_path
    if not path.exists():
        raise SpecError.at(
            path,
            "the lock is missing",
            code="file-not-found",
            hint="`kimbox lock` writes it",
            fields={"path": str(path)},
        )
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
