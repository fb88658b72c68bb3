"""A recipe and a root file system that are so small that their disk is written in less than a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import attrs
from makebox import MIB, make_box

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.image import namespace
from kimbox.image.inputs import recipe
from kimbox.image.inputs.provisioners import GuestFile
from kimbox.image.inputs.recipe import Recipe
from kimbox.lock.apt.packages import LockedPackages, request_digest
from kimbox.spec.layout import plan
from kimbox.spec.model import Box, Disk, PackageImage, Volume

DISK = Disk(
    256 * MIB,
    16 * MIB,
    "vg-x",
    *(Volume(n, 16 * MIB) for n in ("root", "persistent", "swap")),
    Volume("root_snap", None),
)

#: Creates what mmdebstrap would create: files of several owners, files that SPLIT moves, and GRUB's two images.
TREE = r"""
set -eu
mkdir -p root/boot/grub root/etc root/home/user root/persistent root/dev root/proc root/tmp root/run root/sys
head -c 512 /dev/zero | tr '\0' 'B' >root/boot/grub/boot.img
head -c 3000 /dev/zero | tr '\0' 'C' >root/boot/grub/core.img
echo 'set default=keep' >root/boot/grub/grub.cfg
echo tiny >root/etc/hostname
echo secret >root/etc/shadow
chmod 0640 root/etc/shadow
chgrp 42 root/etc/shadow
echo hello >root/home/user/file
chown -R 1000:1000 root/home/user
ln -s /etc/hostname root/etc/link
mknod -m 0666 root/dev/null c 1 3 2>/dev/null || : >root/dev/null
echo x >root/tmp/left
mkdir root/boot/lost
touch -d @100 root/etc/hostname
"""


#: Locked packages of a lock that installs nothing.
LOCKED = LockedPackages(
    "0" * 64, "2026-01-01T00:00:00Z", ("deb http://m.example.org/debian trixie main",), {}
).as_chosen()


def choose(image: PackageImage, names: Iterable[str], previous: LockedPackages | None, **_: object) -> LockedPackages:
    """Replaces lock.apt.choose.choose. It does not read an archive."""
    request = request_digest(image.distribution, image.suite, image.mirror, names)
    return previous if previous and previous.request == request else attrs.evolve(LOCKED, request=request)


def usable() -> bool:
    """Whether the current user can build an image on this host."""
    try:
        namespace.check()
        run.require("mke2fs")
    except KimboxError:
        return False
    return True


def tiny_box(folder: Path, *, packages: tuple[str, ...] = ("one",)) -> Box:
    """Returns a box with a small disk."""
    return attrs.evolve(make_box(folder), disk=DISK, image=PackageImage("debian", "trixie", packages))


def tiny_recipe() -> Recipe:
    """Returns a recipe with files for /persistent and without packages."""
    return Recipe(
        distribution="debian",
        suite="trixie",
        packages=(),
        locked=LOCKED,
        layout=plan(DISK),
        files=(),
        persistent=(GuestFile("runsetup", b"#!/bin/sh\n", 0o755), GuestFile("dir/file", b"text")),
    )


def fill(_: Recipe, work: Path, *, on_line: Callable[[str], None], log: IO[str]) -> Path:
    """Replaces image.build.rootfs.build. Returns the root folder."""
    log.write("installing\n")
    on_line("installing")
    namespace.call(["sh", "-c", TREE], cwd=work)
    return work / "root"


def key_of(box: Box) -> str:
    """Returns the key of the image of a box."""
    assert isinstance(box.image, PackageImage)
    return recipe.recipe(box, box.image, LOCKED).key
