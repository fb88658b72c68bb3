"""The recipe of an image: all its inputs, and its key in the store. Equal recipes have equal keys on every host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import attrs

from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import GuestFile, Provisioner
from kimbox.lock.apt.boxsources import KEYS_DIR, is_for_box
from kimbox.lock.apt.packages import LockedPackages, request_digest
from kimbox.render import guestfiles
from kimbox.spec.layout import Layout, plan
from kimbox.spec.model import Box, PackageImage

#: Version of the build. Increase it if a change of kimbox builds another image from the same inputs.
FORMAT = 2

#: The time of all files in an image, in Unix seconds (2025-01-01), so that images do not depend on the build time.
EPOCH_S = 1735689600

#: Lines of the sources.list of a guest without a source.
NO_SOURCES = (
    "# The host that pinned the packages of this box has no source that the box can reach.",
    "# `image: mirror:` in the spec of the box names one. See sources.list(5).",
)

#: Prefix of the names of kernel packages.
KERNEL = "linux-image-"

#: The unit that monitors a snapshot that may fill up. It is enabled only in a box with such a snapshot.
SNAPWATCH = "kimbox-snapwatch.service"


@attrs.frozen
class Recipe:
    """All inputs of an image that is built from packages."""

    distribution: str
    suite: str
    #: The requested packages; `locked` also has all their dependencies.
    packages: tuple[str, ...]
    locked: LockedPackages
    layout: Layout
    files: tuple[GuestFile, ...]
    persistent: tuple[GuestFile, ...]

    @property
    def key(self) -> str:
        """The sha256 of all inputs, as hex digest: the key of the image in the store."""
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
    """The packages that an image requests, sorted: those of the spec and of every provisioner.

    A kernel package in the spec replaces the default kernel. `parts`: the provisioners, from `provisioners.load_all`;
    None to read them from disk. `request` and `recipe` have the same argument.
    """
    parts = provisioners.load_all() if parts is None else parts
    needed = {package for p in parts for package in p.packages_for(image.distribution)}
    if any(package.startswith(KERNEL) for package in image.packages):
        needed = {package for package in needed if not package.startswith(KERNEL)}
    return tuple(sorted(needed | set(image.packages)))


def request(image: PackageImage, parts: Sequence[Provisioner] | None = None) -> str:
    """The digest of the requested packages, which must be equal to that in the lock."""
    names = requested(image, parts)
    return request_digest(image.distribution, image.suite, image.mirror, names, recommends=image.recommends)


def recipe(box: Box, image: PackageImage, locked: LockedPackages, parts: Sequence[Provisioner] | None = None) -> Recipe:
    """The recipe of a box whose image kimbox builds from the packages of its lock."""
    parts = provisioners.load_all() if parts is None else parts
    parts = [part for part in parts if part.name != provisioners.STRIP or not image.docs]
    layout = plan(box.disk)
    watch = {SNAPWATCH} if layout.snapshot_may_fill else set()
    units = sorted({unit for p in parts for unit in p.enable} | watch)
    job_mark = [GuestFile("usr/lib/kimbox/is-job-box", b"The box runs the job on its second disk, then shuts down.\n")]
    rendered = [
        GuestFile("boot/grub/grub.cfg", guestfiles.grub_cfg(layout).encode()),
        GuestFile("etc/fstab", guestfiles.fstab(layout).encode()),
        GuestFile("usr/lib/kimbox/enabled-units", ("\n".join(units) + "\n").encode()),
        GuestFile("usr/lib/kimbox/sources.list", _sources_list(locked)),
        *(job_mark if box.job else []),
        *(GuestFile(f"{KEYS_DIR}/{name}", text.encode()) for name, text in sorted(locked.keys.items())),
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


def _sources_list(locked: LockedPackages) -> bytes:
    """The guest's sources.list: the sources of the lock that a guest can reach."""
    lines = [line for line in locked.sources if is_for_box(line)]
    return "".join(f"{line}\n" for line in lines or NO_SOURCES).encode()
