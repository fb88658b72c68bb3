"""Checks the lock of a project against its spec, and against the servers. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kimbox.errors import SpecError, StateError
from kimbox.image import obtain
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import Provisioner
from kimbox.image.inputs.recipe import Recipe, recipe, request
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.check import LockFaults, LockText, check, check_remote
from kimbox.lock.lockfile import Lock, read_lock
from kimbox.log import log
from kimbox.project.project import Project
from kimbox.spec.model import Box, PackageImage


def base_parts(box: Box) -> tuple[Provisioner, ...]:
    """The provisioners that go into the image of a box; none for an image that is not built here."""
    return provisioners.load_all() if isinstance(box.image, PackageImage) else ()


def recipe_for(box: Box, locked: LockedPackages | None, parts: Sequence[Provisioner]) -> Recipe | None:
    """The recipe of a box's image, from locked packages and provisioners; None for an image that is not built here."""
    if locked is None or not isinstance(box.image, PackageImage):
        return None
    return recipe(box, box.image, locked, parts)


def image_key(project: Project) -> str:
    """The key of the image of a project that has a lock. Raises StateError if it has none."""
    path = project.lock_path
    if not path.exists():
        raise StateError(
            f"{project.name} has no lock yet, and no image", hint="`kimbox up` or `kimbox build` makes both"
        )
    return obtain.key_of(project.box, read_lock(path).packages)


def check_lock_file(project: Project, parts: Sequence[Provisioner] | None = None) -> LockFaults:
    """Compares the lock with its spec and with what this host has. Raises SpecError if there is no lock.

    `parts`: the provisioners of the image (`base_parts`), where the caller has them already.
    """
    path, box = project.lock_path, project.box
    if not path.exists():
        raise SpecError.at(path, "there is no lock", hint="`kimbox lock` makes it; keep it in git beside the spec")
    parts = base_parts(box) if parts is None else parts
    text = LockText.read(path)
    if wrong := check_packages(box, text.lock, parts):
        found = check(box, text, image=None)
        return LockFaults([*found.wrong, *(text.problem(words, "packages", "request") for words in wrong)], found.notes)
    return check(box, text, image=obtain.key_of(box, recipe_for(box, text.lock.packages, parts)))


def check_packages(box: Box, lock: Lock, parts: Sequence[Provisioner]) -> list[str]:
    """Where spec and lock disagree about the packages of the image, in words; empty if they agree."""
    if not isinstance(box.image, PackageImage):
        return ["the lock has packages, and the image is not built from any"] if lock.packages else []
    if lock.packages is None:
        return ["the lock names no packages, and the image is built from some"]
    if lock.packages.request != request(box.image, parts):
        return ["the image asks for other packages than the lock was made for"]
    return []


def verify_lock(project: Project, *, remote: bool) -> tuple[Path, list[str]]:
    """Checks the lock of a project, and with `remote` also against the servers.

    Returns the file, and notes on a lock that holds. Raises SpecError, with every fault, for a lock that does not.
    """
    path = project.lock_path
    found = check_lock_file(project)
    notes = list(found.notes)
    if remote:
        asked = check_remote(project.box, LockText.read(path))
        found, notes = LockFaults(found.wrong + asked.wrong), asked.notes
    for note in notes if found.wrong else []:
        log.warn(note)
    refuse(found, "`kimbox lock` brings it up to date; `kimbox lock --update NAME` takes a new commit")
    return path, notes


def refuse(found: LockFaults, hint: str) -> None:
    """Raises SpecError if the check found a fault."""
    if found.wrong:
        raise SpecError(found.wrong, hint=hint)
