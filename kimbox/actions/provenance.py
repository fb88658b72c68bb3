"""Collects the provenance of a box for `kimbox provenance` and for packages."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs

from kimbox.actions import diff, observe
from kimbox.errors import StateError
from kimbox.image import obtain
from kimbox.image.disk.compare import sha256_disk
from kimbox.image.store import images
from kimbox.lock.git.refs import COMMIT
from kimbox.lock.lockfile import Lock
from kimbox.lock.provenance import Provenance
from kimbox.log import log
from kimbox.machine import delivered_locks
from kimbox.machine.folder import machine_of
from kimbox.project.project import Project
from kimbox.spec.model import SETUP, PackageImage


def provenance_of(project: Project, *, hashed: bool = True) -> tuple[Provenance, str]:
    """The provenance of a box, and the name of the lock that it comes from.

    The lock is the one that the box runs, or that of the spec if the box does not exist or has not reported its lock.
    `hashed=False`: the disk of a built image is not read, and its sha256 is None. Raises SpecError if there is no lock,
    ImageError if the lock has no packages for an image that is built here.
    """
    box, side, reported = project.box, None, None
    machine = machine_of(box.name)
    if machine.exists:
        with contextlib.suppress(StateError):
            reported = observe.provenance(machine, machine.boot_events())
            side = diff.Side(f"the box {machine.name}", _as_reported(reported, delivered_locks.lock_of(machine)))
    stale = (reported["stale"] or {}) if side and reported else {}
    side = side or diff.of_spec(project)
    key = machine.record().image if machine.exists else obtain.key_of(box, side.lock.packages)
    package_image = box.image if isinstance(box.image, PackageImage) else None
    provenance = Provenance(
        box.name,
        side.lock,
        image=key,
        image_sha256=(_sha256(key) if hashed else None) if package_image else key,
        distribution=package_image.distribution if package_image else "",
        suite=package_image.suite if package_image else "",
        stale=stale,
    )
    return provenance, side.name


def _as_reported(reported: dict[str, Any] | None, lock: Lock) -> Lock:
    """The lock that a box runs, with the unpinned repositories and the commit of the setup that the guest reports."""
    if reported is None:
        return lock
    unpinned = tuple(name for name in reported["unpinned"] if name in lock.repositories)
    setup, commit = lock.repositories.get(SETUP), reported["provisioned"]["setup_commit"]
    repositories = dict(lock.repositories)
    if setup and commit and COMMIT.fullmatch(commit) and commit != setup.commit:
        repositories[SETUP] = attrs.evolve(setup, commit=commit, tree="", submodules={})
    return attrs.evolve(
        lock, repositories=repositories, unpinned=unpinned, frozen_digest=reported.get("lock_digest") or lock.digest
    )


def _sha256(key: str) -> str | None:
    """The sha256 hex digest of a built image's whole disk; None if the store does not have the image."""
    image = images.find(key)
    if image is None:
        return None
    with log.step("reading the image"):
        return sha256_disk(image.disk)
