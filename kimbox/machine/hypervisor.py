"""What runs the machines of the provider `vagrant`: libvirt, or VirtualBox where there is no libvirt.

Each has its word in Vagrant, its words for the states of a machine, a format of boxes, and things that Vagrant leaves
in it and never removes. All of ours bear names that begin with `kimbox-TAG-`; TAG tells one $KIMBOX_HOME from another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from kimbox import paths, run
from kimbox.errors import KimboxError
from kimbox.files import read_bounded
from kimbox.image.store import Image
from kimbox.spec.model import Box

#: In a machine's folder: the name of its hypervisor.
FILE = "hypervisor"


class Hypervisor(Protocol):
    """One of them. Its methods raise CommandError in its own words."""

    @property
    def name(self) -> str:
        """Vagrant's word for it."""

    @property
    def states(self) -> Mapping[str, tuple[bool, bool]]:
        """The words of `vagrant status` for a machine, and what they mean: running, standing still."""

    def require(self) -> None:
        """Raises MissingToolError if its own program is not here."""

    def write_box(self, box: Box, image: Image, target: Path) -> None:
        """Makes the image a Vagrant box for it."""

    def sweep(self, name: str) -> None:
        """Removes all that is left of a machine, where there is any."""

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
    return _all()[1 if run.which("VBoxManage") and not run.which("virsh") else 0]


def of(folder: Path) -> Hypervisor:
    """That of the machine in a folder. Raises KimboxError if it is none that is known."""
    file = folder / FILE
    told = read_bounded(file, limit_bytes=100).decode("utf-8", "replace").strip() if file.exists() else _all()[0].name
    for one in _all():
        if one.name == told:
            return one
    raise KimboxError(
        f"{file} names no hypervisor that is known: {told!r}", hint="`kimbox destroy` removes the machine"
    )


def _all() -> tuple[Hypervisor, Hypervisor]:
    from kimbox.machine.libvirt import Libvirt
    from kimbox.machine.virtualbox import VirtualBox

    return Libvirt(), VirtualBox()
