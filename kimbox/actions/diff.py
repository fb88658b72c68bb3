"""Compares two locks, or a lock and a box. Each argument of `kimbox diff` gives one side."""

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
from kimbox.machine.record import Record
from kimbox.machine.shape import ShapeChange, shape_changes
from kimbox.project.project import Project
from kimbox.spec.model import Box
from kimbox.spec.nodes import Fault
from kimbox.spec.rules import box_name

#: Timeout of the list of packages, in seconds. dpkg-query takes one second in an emulated guest.
LIST_TIMEOUT_S = 60.0

_LIST_PACKAGES = r"dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version} ${Architecture}\n'"

#: A line of `_LIST_PACKAGES` with an installed package: name, version, architecture. Other lines are ignored.
_PACKAGE = re.compile(
    r"^[uihrp][iWt][ R] +([a-z0-9][a-z0-9+.-]{0,99}) ([0-9][0-9A-Za-z.+:~-]{0,99}) ([a-z0-9-]{1,20})$", re.MULTILINE
)


@attrs.frozen
class Side:
    """A lock, and for a box also its differences from this lock."""

    #: Name of the lock's file, or of the box, for messages.
    name: str
    lock: Lock
    #: Packages of a box that differ from its lock; None for a file, and if the box does not answer.
    installed: PackageChanges | None = None
    #: Steps of a box that ran at other commits than those of its lock; None if the guest has not reported them.
    stale: Sequence[StaleStep] | None = None
    #: The record of a box; None for a file.
    record: Record | None = None
    #: The spec beside the lock; None if the lock was given by its name.
    box: Box | None = None


@attrs.frozen
class Compared:
    """Two sides, their differences, and for each repository whose commit changed the commits between."""

    old: Side
    new: Side
    diff: LockDiff
    logs: Mapping[str, Between | None]
    #: Processors, memory, ports and scratch space of a box that differ from its spec, if both sides are compared.
    shape: Sequence[ShapeChange] = ()

    @property
    def differs(self) -> bool:
        """Whether the locks or the shape differ, or a step of a box ran at other commits than those of its lock."""
        return bool(self.diff or self.shape or self.old.stale or self.new.stale)


def compare(old: Side, new: Side) -> Compared:
    """Compares two sides. The commits between come from the mirrors on this host."""
    lock_diff = diff(old.lock, new.lock)
    is_own_spec = old.record and new.box and old.record.box == new.box.name
    shape = shape_changes(old.record, new.box) if old.record and new.box and is_own_spec else []
    return Compared(old, new, lock_diff, logs(lock_diff), shape)


def logs(lock_diff: LockDiff) -> dict[str, Between | None]:
    """The commits between, by repository; None if no mirror has them. A folder has no history and is left out."""
    return {
        change.name: history.between(change.new.url, change.old.commit, change.new.commit)
        for change in lock_diff.repositories
        if change.kind is Kind.MOVED and change.old and change.new and not change.is_folder
    }


def named(argument: str) -> Side:
    """The side that an argument of `kimbox diff` names: a lock file, REV:PATH in git, or a box.

    Raises SpecError if the file is not a valid lock, StateError if the file, object or box is not found.
    """
    path = Path(argument)
    if _is_file(path) or (argument.endswith(".lock") and ":" not in argument):
        return Side(argument, read_lock(path))
    if ":" in argument:
        return Side(argument, _from_git(argument))
    try:
        machine = Machine(box_name(argument))
    except Fault:
        raise StateError(
            f"{argument} is not a lock file, not REV:PATH in git, and cannot be the name of a box",
            code="bad-name",
            fields={"name": argument},
        ) from None
    if not machine.exists:
        raise StateError(
            f"no lock file and no box has the name {argument}",
            code="box-not-found",
            hint="`kimbox list` shows the boxes",
            fields={"name": argument},
        )
    return of_box(machine)


def of_box(machine: Machine) -> Side:
    """The lock that a box runs, its stale steps, and its changed packages if the box is reachable.

    Raises StateError if there is no such box, or its lock is not known.
    """
    lock = delivered_locks.lock_of(machine)
    record = machine.record()
    stale_steps = stale.steps(
        machine.name, provenance(machine, machine.boot_events()), sealed=record.sealed is not None
    )
    return Side(f"the box {machine.name}", lock, _installed(machine, lock), stale_steps, record)


def _installed(machine: Machine, lock: Lock) -> PackageChanges | None:
    """How the packages of a box differ from its lock; None if the box does not answer."""
    installed = installed_packages(machine) if lock.packages else None
    if not lock.packages or installed is None:
        return None
    return packages.compare(lock.packages.versions, lock.packages.as_installed(installed).versions)


def installed_packages(machine: Machine) -> dict[str, tuple[str, str]] | None:
    """The packages of a running box: name -> version, architecture; None if the box does not answer."""
    if not state(machine).reachable:
        return None
    from kimbox.guest.ssh import Guest

    try:
        with Guest(reach(machine)) as guest:
            answer = guest.run(_LIST_PACKAGES, timeout_s=LIST_TIMEOUT_S)
    except KimboxError as error:
        log.detail(f"cannot read the installed packages of {machine.name}: {error}")
        return None
    return {name: (version, arch) for name, version, arch in _PACKAGE.findall(answer.stdout)}


def of_spec(project: Project) -> Side:
    """The lock of a spec. Raises SpecError if it is missing or not valid."""
    path = project.lock_path
    if not path.exists():
        raise SpecError.at(
            path,
            "lock not found",
            code="lock-not-found",
            hint="`kimbox lock` writes it",
            fields={"path": str(path)},
        )
    return Side(str(path), read_lock(path), box=project.box)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for a file
        return False


def _from_git(revision: str) -> Lock:
    """The lock REV:PATH of the git repository around the current folder.

    Raises StateError if git does not find it, KimboxError or SpecError if it is not a valid lock.
    """
    try:
        blob = git(["rev-parse", "--verify", "--quiet", "--end-of-options", revision]).text
        data = git(["cat-file", "blob", blob]).stdout
    except GitError:
        raise StateError(
            f"git does not find {revision} in the repository of the current folder",
            code="file-not-found",
            hint="REV is a branch, tag or commit; PATH starts at the top of the repository, or with ./ in this folder",
            fields={"path": revision},
        ) from None
    if len(data) > MAX_LOCK_BYTES:
        raise KimboxError(
            f"{revision} is larger than {MAX_LOCK_BYTES >> 20} MiB, the maximum for a lock",
            code="file-too-large",
            fields={"path": revision, "limit_bytes": str(MAX_LOCK_BYTES)},
        )
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise SpecError.at(revision, "this file is not text in UTF-8", code="bad-encoding") from None
    return parse_lock(text, Path(revision))[0]
