"""Checks the lock of a project against its spec, and against the servers. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kimbox.errors import SpecError, StateError
from kimbox.image import obtain
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import Provisioner
from kimbox.image.inputs.recipe import Recipe, recipe, request, requested
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.check import LockFaults, LockText, check, check_remote
from kimbox.lock.lockfile import Lock, read_lock
from kimbox.log import log
from kimbox.project.project import Project
from kimbox.spec.model import Box, PackageImage


def base_provisioners(box: Box) -> tuple[Provisioner, ...]:
    """Returns the provisioners that go into the image of a box. Empty for an image that is not built here."""
    return provisioners.load_all() if isinstance(box.image, PackageImage) else ()


def recipe_for(box: Box, locked: LockedPackages | None, base: Sequence[Provisioner]) -> Recipe | None:
    """Returns the recipe of a box's image, from locked packages and the provisioners `base`.

    None for an image that is not built here.
    """
    if locked is None or not isinstance(box.image, PackageImage):
        return None
    return recipe(box, box.image, locked, base)


def image_key(project: Project) -> str:
    """Returns the key of the image that the lock of a project describes. Raises StateError if there is no lock."""
    path = project.lock_path
    if not path.exists():
        raise StateError(
            f"{project.name} has no lock yet, and therefore no image",
            code="lock-not-found",
            fields={"name": project.name, "path": str(path)},
            hint=f"`kimbox build{f' {project.shipped}' if project.shipped else ''}` creates both",
        )
    return obtain.key_of(project.box, read_lock(path).packages)


def check_lock_file(project: Project, base: Sequence[Provisioner] | None = None) -> LockFaults:
    """Compares the lock with its spec, and with the folders and mirrors of this host.

    `base`: the provisioners of the image, if the caller has loaded them already (`base_provisioners`). Raises SpecError
    if there is no lock.
    """
    path, box = project.lock_path, project.box
    if not path.exists():
        hint = "`kimbox lock` writes it; keep it in git beside the spec"
        raise SpecError.at(path, "lock not found", code="lock-not-found", hint=hint, fields={"path": str(path)})
    base = base_provisioners(box) if base is None else base
    text = LockText.read(path)
    if differences := package_differences(box, text.lock, base):
        faults = check(box, text, image=None)
        of_packages = (text.problem(difference, "packages", "request") for difference in differences)
        return LockFaults([*faults.wrong, *of_packages], faults.notes)
    return check(box, text, image=obtain.key_of(box, recipe_for(box, text.lock.packages, base)))


def package_differences(box: Box, lock: Lock, base: Sequence[Provisioner]) -> list[str]:
    """Returns what differs between spec and lock about the packages of the image, as texts. Empty if they agree."""
    if not isinstance(box.image, PackageImage):
        return ["the lock has packages, but the image is not built from packages"] if lock.packages else []
    if lock.packages is None:
        return ["the lock has no packages, but the image is built from packages"]
    if lock.packages.request != request(box.image, base):
        return ["the image asks for other packages than the lock was made for"]
    fault = lock.packages.fault(requested(box.image, base))
    return [fault] if fault else []


def verify_lock(project: Project, *, remote: bool) -> tuple[Path, list[str]]:
    """Checks the lock of a project; with `remote`, also against the servers.

    Returns the path of the lock, and the notes of the check. Raises SpecError, with every fault, if the lock has
    faults; the notes are then warnings.
    """
    path = project.lock_path
    faults = check_lock_file(project)
    notes = list(faults.notes)
    if remote:
        remote_faults = check_remote(project.box, LockText.read(path))
        faults, notes = LockFaults(faults.wrong + remote_faults.wrong), remote_faults.notes
    for note in notes if faults.wrong else []:
        log.warn(note)
    raise_faults(faults, "`kimbox lock` brings it up to date; `kimbox lock --update NAME` takes a new commit")
    return path, notes


def raise_faults(faults: LockFaults, hint: str) -> None:
    """Raises SpecError with every fault of a check, if there are faults.

    The code of the error is that of the faults if they all have the same, else `bad-spec`.
    """
    if faults.wrong:
        codes = {problem.code for problem in faults.wrong}
        raise SpecError(faults.wrong, code=codes.pop() if len(codes) == 1 else "bad-spec", hint=hint)
