"""The hypervisor that Vagrant uses: libvirt, or VirtualBox on a host without libvirt.

Each hypervisor has a name in Vagrant, names for the states of a machine, a box format, and objects that Vagrant does
not remove.
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

#: Name of the file in a machine's folder that has the name of its hypervisor.
FILE = "hypervisor"


class Hypervisor(Protocol):
    """The interface of the modules libvirt and virtualbox. Functions raise CommandError with the program's output."""

    @property
    def NAME(self) -> str:
        """The name of the hypervisor in Vagrant."""

    @property
    def STATES(self) -> Mapping[str, tuple[bool, bool]]:
        """State in `vagrant status` -> whether the machine runs, and whether it is paused."""

    def require_program(self) -> None:
        """Raises MissingToolError if its program is not installed."""

    def write_box(self, box: Box, image: Image, target: Path) -> None:
        """Writes the image as a Vagrant box for this hypervisor to the file `target`."""

    def networks(self, folder: Path, name: str) -> list[str]:
        """Returns the networks that Vagrant created for a machine and has not removed. `folder` is the machine's."""

    def remove_leftovers(self, name: str, created_networks: Sequence[str] = ()) -> None:
        """Removes what remains of a machine, and those of its networks that no other machine uses."""

    def remove_image(self, vagrant_box: str) -> None:
        """Removes the copy of a box's image that Vagrant made in the hypervisor."""

    def copy_disk(self, name: str, image: Image, work: Path) -> Path:
        """Copies the disk of a machine that does not run to the folder `work`, as a qcow2. Returns the copy."""


def default() -> Hypervisor:
    """Returns the hypervisor for new machines: libvirt, unless only VirtualBox is installed."""
    return virtualbox if run.which("VBoxManage") and not run.which("virsh") else libvirt


def of(folder: Path) -> Hypervisor:
    """Returns the hypervisor of the machine in a folder. Raises KimboxError (`file-damaged`) if its name is unknown."""
    file = folder / FILE
    known: dict[str, Hypervisor] = {libvirt.NAME: libvirt, virtualbox.NAME: virtualbox}
    if not file.exists():
        return libvirt
    name = read_bounded(file, limit_bytes=100).decode("utf-8", "replace").strip()
    if name not in known:
        raise KimboxError(
            f"{file} has no known hypervisor: {name!r}",
            code="file-damaged",
            hint=f"write one of {', '.join(known)} to the file",
            fields={"path": str(file), "hypervisor": name},
        )
    return known[name]
