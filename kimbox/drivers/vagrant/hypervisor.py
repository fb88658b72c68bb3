"""The hypervisor below Vagrant: libvirt, or VirtualBox on a host without libvirt.

Each has its name in Vagrant, its words for the states of a machine, a format of boxes, and leftovers that Vagrant never
removes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kimbox import run
from kimbox.drivers.vagrant import libvirt, virtualbox
from kimbox.errors import KimboxError
from kimbox.files import read_bounded
from kimbox.image.store.images import Image
from kimbox.spec.model import Box

#: In a machine's folder: the name of its hypervisor.
FILE = "hypervisor"


class Hypervisor(Protocol):
    """What the modules libvirt and virtualbox have. All functions raise CommandError with the program's own message."""

    @property
    def NAME(self) -> str:
        """Its name in Vagrant."""

    @property
    def STATES(self) -> Mapping[str, tuple[bool, bool]]:
        """State of a machine in `vagrant status` -> whether it runs, and whether it is paused."""

    def needed(self) -> None:
        """Raises MissingToolError if its program is not installed."""

    def write_box(self, box: Box, image: Image, target: Path) -> None:
        """Writes the image as a Vagrant box for it."""

    def networks(self, folder: Path, name: str) -> list[str]:
        """The networks that Vagrant created for a machine, and has not removed. `folder` is the machine's."""

    def sweep(self, name: str, made: Sequence[str] = ()) -> None:
        """Removes what is left of a machine, and those of the networks `made` for it that nobody uses."""

    def drop_image(self, vagrant_box: str) -> None:
        """Removes what Vagrant has made of the image of a box."""

    def copy_disk(self, name: str, image: Image, work: Path) -> Path:
        """Copies the disk of a machine that does not run, made from that image, to the folder `work`; a qcow2."""


def here() -> Hypervisor:
    """The one for new machines: libvirt, unless VirtualBox alone is installed."""
    return virtualbox if run.which("VBoxManage") and not run.which("virsh") else libvirt


def of(folder: Path) -> Hypervisor:
    """That of the machine in a folder. Raises KimboxError if the folder names an unknown one."""
    file = folder / FILE
    known: dict[str, Hypervisor] = {libvirt.NAME: libvirt, virtualbox.NAME: virtualbox}
    if not file.exists():
        return libvirt
    name = read_bounded(file, limit_bytes=100).decode("utf-8", "replace").strip()
    if name not in known:
        hint = f"it is one of {', '.join(known)}: write it there"
        raise KimboxError(f"{file} names no hypervisor: {name!r}", hint=hint)
    return known[name]
