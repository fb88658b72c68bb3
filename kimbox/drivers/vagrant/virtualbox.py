"""VirtualBox under Vagrant, with VBoxManage. Written from its manual; not tested with a real VirtualBox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kimbox.drivers.names import domain
from kimbox.errors import GuestError
from kimbox.image.formats import export
from kimbox.image.formats.export import Content, Format
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine.folder import USER
from kimbox.run import Completed, require, run
from kimbox.spec.model import Box, PackageImage

#: Name of the hypervisor in Vagrant, and state of a machine -> whether it runs, and whether it is paused.
NAME = "virtualbox"
STATES = {
    "running": (True, False), "paused": (True, True), "starting": (True, False), "stopping": (True, False),
    "saving": (True, False), "restoring": (True, False), "stuck": (True, True), "gurumeditation": (True, True),
    "inaccessible": (False, False), "poweroff": (False, False), "saved": (False, False),
    "aborted": (False, False), "aborted-saved": (False, False), "not_created": (False, False),
}  # fmt: skip

#: Timeout of every other command of VBoxManage, in seconds.
TIMEOUT_S = 60.0

#: Timeout of a copy of a whole disk, in seconds.
COPY_TIMEOUT_S = 3600.0

#: Matches the first disk in `showvminfo --machinereadable`, with any name of its controller.
_DISK = re.compile(r'^"[^"]+-0-0"="(?P<path>/[^"]+\.(?:vmdk|vdi|vhd))"$', re.MULTILINE | re.IGNORECASE)


def manage(*arguments: str, check: bool = True, timeout_s: float = TIMEOUT_S) -> Completed:
    """Runs VBoxManage. Raises CommandError, with its output, if it fails."""
    return run(["VBoxManage", "-q", *arguments], check=check, timeout_s=timeout_s)


def require_program() -> None:
    """Raises MissingToolError if VBoxManage is not installed."""
    require("VBoxManage", "it finds and removes the machines that Vagrant leaves in VirtualBox")


def write_box(box: Box, image: Image, target: Path) -> None:
    """Writes the image as a Vagrant box to the file `target`."""
    guest = box.image.distribution if isinstance(box.image, PackageImage) else "linux"
    content = Content(
        box.name, image.disk, image.format, image.virtual_bytes, box.cpus, box.memory_bytes, guest, USER, lambda _: {}
    )
    export.write(Format.VIRTUALBOX, content, target, None)


def networks(folder: Path, name: str) -> list[str]:
    """Returns an empty list: each machine uses its own NAT, and no network is created."""
    return []


def remove_leftovers(name: str, created_networks: Sequence[str] = ()) -> None:
    """Removes the machine with its disks, if it exists."""
    full = domain(name)
    if f'"{full}" ' in manage("list", "vms", check=False).stdout:
        log.detail(f"removing the machine {full}")
        manage("controlvm", full, "poweroff", check=False)
        manage("unregistervm", full, "--delete")


def remove_image(vagrant_box: str) -> None:
    """Does nothing: Vagrant imports a box for each machine, and keeps no copy."""


def copy_disk(name: str, image: Image, work: Path) -> Path:
    """Copies the current content of the disk of a machine that does not run. Raises GuestError if it has no disk."""
    disk = _DISK.search(manage("showvminfo", domain(name), "--machinereadable").stdout)
    if not disk:
        raise GuestError(f"VBoxManage shows no disk of {name}", code="unexpected-output", fields={"name": name})
    vdi, copy = work / "virtualbox.vdi", work / "virtualbox.qcow2"
    manage("clonemedium", "disk", disk["path"], str(vdi), "--format", "VDI", timeout_s=COPY_TIMEOUT_S)
    manage("closemedium", "disk", str(vdi))  # else VirtualBox keeps it in its list of disks
    run(["qemu-img", "convert", "-f", "vdi", "-O", "qcow2", vdi, copy], timeout_s=COPY_TIMEOUT_S)
    vdi.unlink()
    return copy
