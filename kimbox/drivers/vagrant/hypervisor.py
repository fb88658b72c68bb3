"""What runs the machines of the provider `vagrant`: libvirt, or VirtualBox where there is no libvirt.

Each has its word in Vagrant, its words for the states of a machine, a format of boxes, and things that Vagrant leaves
in it and never removes. All of ours bear names that begin with `kimbox-TAG-`; TAG tells one $KIMBOX_HOME from another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kimbox import paths, run
from kimbox.errors import KimboxError
from kimbox.files import read_bounded
from kimbox.image.store.images import Image
from kimbox.spec.model import Box

#: In a machine's folder: the name of its hypervisor.
FILE = "hypervisor"


class Hypervisor(Protocol):
    """One of them: what the modules libvirt and virtualbox have. All raise CommandError in its own words."""

    @property
    def NAME(self) -> str:
        """Vagrant's word for it."""

    @property
    def STATES(self) -> Mapping[str, tuple[bool, bool]]:
        """The words of `vagrant status` for a machine, and what they mean: running, standing still."""

    def needed(self) -> None:
        """Raises MissingToolError if its own program is not here."""

    def write_box(self, box: Box, image: Image, target: Path) -> None:
        """Makes the image a Vagrant box for it."""

    def networks(self, folder: Path, name: str) -> list[str]:
        """The networks that Vagrant made for a machine, in whose folder this is, and has not removed."""

    def sweep(self, name: str, made: Sequence[str] = ()) -> None:
        """Removes all that is left of a machine, where there is any, and of the networks `made` for it what is free."""

    def drop_image(self, vagrant_box: str) -> None:
        """Removes what Vagrant has made of a box's image, where there is any."""

    def copy_disk(self, name: str, image: Image, work: Path) -> Path:
        """Copies the disk of a machine that does not run, made from that image, into the folder; a qcow2."""


def prefix() -> str:
    """What the names of the machines of this home begin with."""
    tag = hashlib.sha256(str(paths.home()).encode()).hexdigest()[:8]
    return f"kimbox-{tag}-"


def domain(name: str) -> str:
    """The name that a machine has in its hypervisor."""
    return f"{prefix()}{name}"


def here() -> Hypervisor:
    """The one for new machines: libvirt, unless there is VirtualBox alone."""
    libvirt, virtualbox = _all()
    return virtualbox if run.which("VBoxManage") and not run.which("virsh") else libvirt


def of(folder: Path) -> Hypervisor:
    """That of the machine in a folder. Raises KimboxError if it is none that is known."""
    file, names = folder / FILE, {one.NAME: one for one in _all()}
    if not file.exists():
        return _all()[0]
    told = read_bounded(file, limit_bytes=100).decode("utf-8", "replace").strip()
    if told not in names:
        raise KimboxError(
            f"{file} names no hypervisor: {told!r}", hint=f"it is one of {', '.join(names)}: write it there"
        )
    return names[told]


def _all() -> tuple[Hypervisor, Hypervisor]:
    from kimbox.drivers.vagrant import libvirt, virtualbox

    return libvirt, virtualbox
