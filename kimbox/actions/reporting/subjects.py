"""The subject of a report: a machine, the image of a spec, or a package. Each is described from its own record.

Another kind of subject is a function that returns a `Subject`.
"""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path

import attrs

from kimbox.actions import provenance, verify
from kimbox.actions.reporting import packages
from kimbox.errors import ImageError, StateError
from kimbox.image.disk import nbd
from kimbox.image.disk.view import DiskView
from kimbox.image.store import images
from kimbox.lock.provenance.inputs import Provenance
from kimbox.log import log
from kimbox.machine import delivered_locks
from kimbox.machine.folder import Machine
from kimbox.project.project import Project

#: Names of checks.
_SECOND_BUILD = "A second build of the image gives the same bytes"
_PACKAGES = "The packages on the disk are those of the lock"
_PINS = "Nothing was changed by hand, and each step ran at the commits of the lock"

#: Maximum number of differences that the evidence of a check names.
MAX_NAMED = 20


class Kind(StrEnum):
    """What a report describes."""

    MACHINE = "machine"
    IMAGE = "image"
    PACKAGE = "package"


class Outcome(StrEnum):
    """The outcome of a check."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    #: The check was not made, or it cannot be made.
    UNKNOWN = "unknown"


@attrs.frozen
class Checked:
    """A check of a subject: its name, its outcome and the evidence, as text."""

    name: str
    outcome: Outcome
    evidence: str


@attrs.frozen
class Subject:
    """What a report describes."""

    kind: Kind
    name: str
    provenance: Provenance
    #: Source of the description, as text for the reader.
    source: str
    checks: tuple[Checked, ...]
    #: The merged spec, as JSON; empty if it is not known.
    spec: bytes = b""
    has_lock: bool = True
    machine: Machine | None = None
    #: The file of a package.
    package: packages.PackageFile | None = None


def of_machine(machine: Machine) -> Subject:
    """The subject of a machine. Raises StateError: `box-not-found`, `lock-unknown`."""
    described = provenance.of_machine_and_disk(machine)
    spec = b""
    with contextlib.suppress(StateError):  # an older kimbox kept only the lock
        spec = delivered_locks.spec_of(machine)
    checks = (_check_image(described.provenance.image), *_check_inputs(described.provenance))
    source = f"the record of the machine {machine.name}, and its disk"
    return Subject(Kind.MACHINE, machine.name, described.provenance, source, checks, spec, machine=machine)


def of_image(project: Project) -> Subject:
    """The subject of the image of a spec that has no machine. Raises the errors of `provenance.provenance_of`."""
    described = provenance.provenance_of(project)
    checks = (_check_image(described.provenance.image), *_check_inputs(described.provenance))
    source = f"the spec {project.source.name}, its lock, and the image in the store"
    return Subject(Kind.IMAGE, project.name, described.provenance, source, checks, described.spec)


def of_package(path: Path, keys: tuple[str, ...]) -> Subject:
    """The subject of a package: a box, an OVA or a disk. With `keys`, one of these ssh keys must have signed it.

    The package is unpacked to a folder that is removed afterwards. Raises ImageError if it is damaged or not signed,
    and the errors of `remote.fetch`.
    """
    with packages.opened(path, keys) as package:
        whole = package.provenance
        image = package.image
        with (
            log.step("reading the disk of the package"),
            contextlib.suppress(ImageError),
            nbd.opened(image.disk, image.format) as disk,
        ):
            whole = provenance.of_disk(whole, DiskView.of(disk.read, disk.size_bytes))
        checks = [Checked(name, Outcome(outcome), evidence) for name, outcome, evidence in package.checks]
        name, spec, has_lock = whole.name, package.spec, package.has_lock
    source = "the files in the package, which its author wrote, and its disk"
    checks += _check_inputs(whole)
    return Subject(Kind.PACKAGE, name, whole, source, tuple(checks), spec, has_lock, package=package.file)


def with_second_build(subject: Subject, project: Project) -> Subject:
    """Builds the image of a project again, and adds the outcome to the checks. Raises the errors of `verify`."""
    verified, _ = verify.verify_project(project)
    if verified.key != subject.provenance.image:
        outcome = Outcome.UNKNOWN
        evidence = f"the spec of the folder now gives another image ({verified.key[:12]}), which was compared instead"
    elif verified.outcome is verify.Outcome.DIFFERENT:
        outcome = Outcome.FAIL
        evidence = f"a second build differs: {_named(verified.unexpected)}"
    else:
        outcome = Outcome.PASS
        evidence = f"a second build has the same bytes, sha256 {verified.stored_sha256}"
        if verified.outcome is verify.Outcome.EXPECTED:
            evidence = f"a second build is the same, except for these files of the lock: {_named(verified.varying)}"
    return attrs.evolve(subject, checks=(*subject.checks, Checked(_SECOND_BUILD, outcome, evidence)))


def _check_image(key: str | None) -> Checked:
    """Compares the image in the store with the digest that kimbox stored."""
    name = "The image in the store has its digest"
    try:
        image = images.find(key) if key else None
        if image is None:
            return Checked(name, Outcome.UNKNOWN, "the image is not in the store of this host")
        with log.step("checking the image in the store"):
            is_compared = images.check(image)
    except ImageError as error:
        return Checked(name, Outcome.FAIL, error.message)
    if not is_compared:
        return Checked(name, Outcome.UNKNOWN, "an older kimbox stored the image without a digest")
    return Checked(name, Outcome.PASS, f"all bytes were read and compared; key {image.key}")


def _check_inputs(whole: Provenance) -> list[Checked]:
    """Whether lock and disk agree, and whether the lock pins all inputs."""
    if not whole.locked or whole.installed is None:
        why = "the lock has no packages" if whole.installed is not None else "the disk was not read"
        packages_check = Checked(_PACKAGES, Outcome.UNKNOWN, why)
    elif whole.mismatch:
        packages_check = Checked(_PACKAGES, Outcome.FAIL, _named(whole.mismatch.lines()))
    else:
        packages_check = Checked(_PACKAGES, Outcome.PASS, f"{len(whole.installed)} packages were compared")
    others = [text for text in whole.unpinned if not text.startswith("package ")]
    others += [f"step {step} ran under other commits" for step in sorted(whole.stale)]
    outcome = Outcome.FAIL if others else Outcome.PASS
    pins_check = Checked(
        _PINS,
        outcome,
        _named(others) if others else "the image has no change by hand, and no step differs",
    )
    return [packages_check, pins_check]


def _named(names: object) -> str:
    """Names as one text, at most MAX_NAMED of them."""
    listed = [str(name) for name in names] if isinstance(names, list | tuple | dict) else [str(names)]
    more = len(listed) - MAX_NAMED
    return "; ".join(listed[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
