"""What a box, or what its lock says it will be, is made of: gathered for `kimbox provenance`."""

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
from kimbox.lock.provenance import Whole
from kimbox.log import log
from kimbox.machine import ran
from kimbox.machine.folder import Machine
from kimbox.spec.model import SETUP, Box, PackageImage


def whole_of(box: Box, *, shipped: bool, hashed: bool = True) -> tuple[Whole, str]:
    """All that went into a box, and whose lock told: that of the running box where it is known, else the spec's.

    Without `hashed` the disk of an image that was built is not read, and its sha256 is not known.

    Raises SpecError if there is no lock either, ImageError if the lock names no packages.
    """
    machine, side, told = Machine(box.name), None, None
    if machine.exists:
        with contextlib.suppress(StateError):
            told = observe.provenance(machine, machine.boot_events())
            side = diff.Side(f"the box {machine.name}", _as_told(told, ran.lock_of(machine)))
    stale = (told["stale"] or {}) if side and told else {}
    side = side or diff.of_spec(box, shipped=shipped)
    key = machine.record().image if machine.exists else obtain.key_of(box, side.lock.packages)
    built = box.image if isinstance(box.image, PackageImage) else None
    whole = Whole(
        box.name,
        side.lock,
        image=key,
        image_sha256=(_sha256(key) if hashed else None) if built else key,
        distribution=built.distribution if built else "",
        suite=built.suite if built else "",
        stale=stale,
    )
    return whole, side.name


def _as_told(told: dict[str, Any] | None, lock: Lock) -> Lock:
    """The lock that a box runs, with what the box itself tells: what is unpinned, and at which commit its setup is."""
    if told is None:
        return lock
    unpinned = tuple(name for name in told["unpinned"] if name in lock.repositories)
    setup, commit = lock.repositories.get(SETUP), told["provisioned"]["setup_commit"]
    repositories = dict(lock.repositories)
    if setup and commit and COMMIT.fullmatch(commit) and commit != setup.commit:
        repositories[SETUP] = attrs.evolve(setup, commit=commit, tree="", submodules={})
    return attrs.evolve(
        lock, repositories=repositories, unpinned=unpinned, frozen_digest=told.get("lock_digest") or lock.digest
    )


def _sha256(key: str) -> str | None:
    """The sha256 of a built image's whole disk, if the store has it."""
    image = images.find(key)
    if image is None:
        return None
    with log.step("reading the image"):
        return sha256_disk(image.disk)
