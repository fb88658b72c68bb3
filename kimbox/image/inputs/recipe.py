"""What an image is made of, and the key that names it in the store: equal recipes have equal keys, on every host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import attrs

from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import GuestFile, Provisioner
from kimbox.lock.apt.packages import LockedPackages, request_digest
from kimbox.render import guestfiles
from kimbox.spec.layout import Layout, plan
from kimbox.spec.model import Box, PackageImage

#: Raised whenever the same recipe would give another image: layout, file systems, the way packages are installed.
FORMAT = 1

#: The time of everything in an image, in Unix seconds: 2025-01-01. Nothing in it tells when it was built.
EPOCH_S = 1735689600

#: How the names of packages with a kernel begin.
KERNEL = "linux-image-"

#: The unit that watches a snapshot which may fill up; no other box needs it.
SNAPWATCH = "kimbox-snapwatch.service"


@attrs.frozen
class Recipe:
    """Everything that goes into an image built from packages."""

    distribution: str
    suite: str
    #: What was asked for; `locked` has what that came to.
    packages: tuple[str, ...]
    locked: LockedPackages
    layout: Layout
    files: tuple[GuestFile, ...]
    persistent: tuple[GuestFile, ...]

    @property
    def key(self) -> str:
        """sha256 hex digest of all of it: the image's name in the store."""
        parts = {
            "format": FORMAT,
            "epoch_s": EPOCH_S,
            "distribution": self.distribution,
            "suite": self.suite,
            "packages": self.packages,
            "locked": self.locked.digest,
            "layout": attrs.asdict(self.layout),
            "files": provisioners.digest(list(self.files)),
            "persistent": provisioners.digest(list(self.persistent)),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def requested(image: PackageImage, parts: Sequence[Provisioner] | None = None) -> tuple[str, ...]:
    """The packages that an image asks for: those of the spec and those of every provisioner, sorted.

    A kernel that the spec names takes the place of the usual one. `parts`: the provisioners, where the caller has them
    already (`provisioners.load_all`); None: they are read from disk. It is the same for `request` and `recipe`.
    """
    parts = provisioners.load_all() if parts is None else parts
    needed = {package for p in parts for package in p.packages_for(image.distribution)}
    if any(package.startswith(KERNEL) for package in image.packages):
        needed = {package for package in needed if not package.startswith(KERNEL)}
    return tuple(sorted(needed | set(image.packages)))


def request(image: PackageImage, parts: Sequence[Provisioner] | None = None) -> str:
    """The digest that a lock must have been made for."""
    return request_digest(image.distribution, image.suite, image.mirror, requested(image, parts))


def recipe(box: Box, image: PackageImage, locked: LockedPackages, parts: Sequence[Provisioner] | None = None) -> Recipe:
    """The recipe of a box whose image is built here, from the packages that its lock names."""
    parts = provisioners.load_all() if parts is None else parts
    layout = plan(box.disk)
    watch = {SNAPWATCH} if layout.snapshot_may_fill else set()
    units = sorted({unit for p in parts for unit in p.enable} | watch)
    rendered = [
        GuestFile("boot/grub/grub.cfg", guestfiles.grub_cfg(layout).encode()),
        GuestFile("etc/fstab", guestfiles.fstab(layout).encode()),
        GuestFile("usr/lib/kimbox/enabled-units", ("\n".join(units) + "\n").encode()),
        GuestFile("usr/lib/kimbox/sources.list", "".join(f"{line}\n" for line in locked.sources).encode()),
    ]
    return Recipe(
        distribution=image.distribution,
        suite=image.suite,
        packages=requested(image, parts),
        locked=locked,
        layout=layout,
        files=tuple(provisioners.overlay(parts) + rendered),
        persistent=tuple(f for p in parts for f in p.persistent),
    )
