"""Collects the provenance of a box for `kimbox provenance` and for packages.

A machine is described by its own record: the lock and the spec that were sent to it, the image that it was made from,
and the packages that it has. The spec of the current folder describes only the image that kimbox makes of it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import attrs

from kimbox.actions import diff, observe
from kimbox.drivers import registry
from kimbox.errors import ImageError, StateError
from kimbox.files import json_bytes
from kimbox.image import obtain, origin
from kimbox.image.disk import dpkg, nbd, osrelease, rawdisk
from kimbox.image.disk.compare import sha256_disk
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.view import DiskView
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.lock.git.refs import COMMIT
from kimbox.lock.lockfile import Lock
from kimbox.lock.provenance.inputs import Provenance
from kimbox.log import log
from kimbox.machine import delivered_locks
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.spec.load import merged_spec
from kimbox.spec.model import SETUP, PackageImage


@attrs.frozen
class Described:
    """What a disk was made from."""

    provenance: Provenance
    #: Name of the lock, for messages: a path, or `the box NAME`.
    lock_name: str
    #: The merged spec, as JSON; empty for a machine, see `delivered_locks.spec_of`.
    spec: bytes = b""


def provenance_of(project: Project) -> Described:
    """What a box is made from: its machine if there is one, else the image of its spec.

    Raises SpecError if there is no lock, StateError (`lock-unknown`) if it is not known what the machine runs,
    ImageError if the lock has no packages for an image that is built here.
    """
    machine = machine_of(project.name)
    if machine.exists:
        return of_machine_and_disk(machine)
    described = of_image(project)
    key = described.provenance.image or ""
    image = images.find(key)
    if image is None:
        return described
    with log.step("reading the image"):
        sha256 = key if "location" in image.facts else sha256_disk(image.disk)
    provenance = attrs.evolve(of_image_bytes(described.provenance, image), image_sha256=sha256)
    if image.format == "raw":
        with rawdisk.opened(image.disk) as view:
            provenance = of_disk(provenance, view)
    return attrs.evolve(described, provenance=provenance)


def of_machine_and_disk(machine: Machine) -> Described:
    """What a machine runs, with the packages that its disk has. Raises the errors of `of_machine`."""
    described = of_machine(machine)
    provenance = described.provenance
    if image := images.find(machine.record().image):
        provenance = of_image_bytes(provenance, image)
    if observe.state(machine) is State.HALTED:
        return attrs.evolve(described, provenance=_of_halted(machine, provenance))
    installed = diff.installed_packages(machine)
    return attrs.evolve(described, provenance=attrs.evolve(provenance, installed=installed))


def _of_halted(machine: Machine, provenance: Provenance) -> Provenance:
    """Adds the packages of the root that a machine ran last, if kimbox can read its disk and no process uses it."""
    if not registry.of(machine).features.own_disk:
        return provenance
    with contextlib.suppress(StateError, ImageError), machine.locked(), nbd.opened(machine.disk, "qcow2") as disk:
        view = DiskView.of(disk.read, disk.size_bytes)
        provenance = of_root(provenance, view.snapshot_of_root.file_system)
    return provenance


def of_image(project: Project) -> Described:
    """What the image of a spec is made from, by spec and lock. Raises the errors of `provenance_of`."""
    side, box = diff.of_spec(project), project.box
    key = obtain.key_of(box, side.lock.packages)
    package_image = box.image if isinstance(box.image, PackageImage) else None
    provenance = Provenance(
        box.name,
        side.lock,
        image=key,
        distribution=package_image.distribution if package_image else "",
        suite=package_image.suite if package_image else "",
    )
    return Described(provenance, side.name, json_bytes(merged_spec(box.source, box.settings, box.member)))


def of_machine(machine: Machine) -> Described:
    """What a machine runs, or ran last, by its own record. Raises StateError (`lock-unknown`)."""
    lock = delivered_locks.lock_of(machine)
    reported = observe.provenance(machine, machine.boot_events())
    stale = (reported["stale"] or {}) if reported else {}
    key = machine.record().image
    image = images.find(key)
    provenance = Provenance(
        machine.name,
        _as_reported(reported, lock),
        image=key,
        distribution=str(image.facts.get("distribution", "")) if image else "",
        suite=str(image.facts.get("suite", "")) if image else "",
        stale=stale,
    )
    return Described(provenance, f"the box {machine.name}")


def of_image_bytes(provenance: Provenance, image: Image) -> Provenance:
    """Adds the bases of an image and the changes that were made by hand, from the record of the image."""
    known = origin.of(image)
    lock = provenance.lock
    if known.packages and known.packages != lock.packages:
        lock = attrs.evolve(lock, packages=known.packages, frozen_digest=lock.digest)
    return attrs.evolve(provenance, lock=lock, bases=known.bases, changed=known.changed)


def of_disk(provenance: Provenance, view: DiskView) -> Provenance:
    """Adds the packages and the distribution of the root on a disk.

    A disk that kimbox cannot read, or on which dpkg has no packages, changes nothing.
    """
    with contextlib.suppress(ImageError):
        return of_root(provenance, view.root.file_system)
    return provenance


def of_root(provenance: Provenance, system: FileSystem) -> Provenance:
    """Adds the packages and the distribution of a root. Raises ImageError if it is damaged."""
    release, installed = osrelease.read(system), dpkg.installed(system)
    return attrs.evolve(
        provenance,
        installed=installed or None,
        distribution=release.distribution or provenance.distribution,
        suite=release.suite or provenance.suite,
    )


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
