"""VirtualBox under Vagrant, through VBoxManage. Written by the chapter of its manual; it was never run for real."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kimbox.drivers.vagrant.names import domain
from kimbox.errors import GuestError
from kimbox.image.formats import export
from kimbox.image.formats.export import Content, Format
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine.folder import USER
from kimbox.run import Completed, require, run
from kimbox.spec.model import Box, PackageImage

#: Vagrant's word for it, and its words for the states of a machine, as Vagrant passes them on: running, standing still.
NAME = "virtualbox"
STATES = {
    "running": (True, False), "paused": (True, True), "starting": (True, False), "stopping": (True, False),
    "saving": (True, False), "restoring": (True, False), "stuck": (True, True), "gurumeditation": (True, True),
    "inaccessible": (False, False), "poweroff": (False, False), "saved": (False, False),
    "aborted": (False, False), "aborted-saved": (False, False), "not_created": (False, False),
}  # fmt: skip

TIMEOUT_S = 60.0

#: A whole disk is copied within this time.
COPY_TIMEOUT_S = 3600.0

#: The first disk in `showvminfo --machinereadable`, whatever its controller is called.
_DISK = re.compile(r'^"[^"]+-0-0"="(?P<path>/[^"]+\.(?:vmdk|vdi|vhd))"$', re.MULTILINE | re.IGNORECASE)


def manage(*words: str, check: bool = True, timeout_s: float = TIMEOUT_S) -> Completed:
    """Runs VBoxManage. Raises CommandError, with its words, if it fails."""
    return run(["VBoxManage", "-q", *words], check=check, timeout_s=timeout_s)


def needed() -> None:
    """Raises MissingToolError if VBoxManage is not here."""
    require("VBoxManage", "it tells what Vagrant left in VirtualBox")


def write_box(box: Box, image: Image, target: Path) -> None:
    """Makes the image a Vagrant box."""
    guest = box.image.distribution if isinstance(box.image, PackageImage) else "linux"
    content = Content(
        box.name, image.disk, image.format, image.virtual_bytes, box.cpus, box.memory_bytes, guest, USER, {}
    )
    export.write(Format.VIRTUALBOX, content, target, None)


def networks(folder: Path, name: str) -> list[str]:
    """None: a machine is behind the NAT of its own."""
    return []


def sweep(name: str, made: Sequence[str] = ()) -> None:
    """Removes the machine of a box with its disks, where there is one."""
    full = domain(name)
    if f'"{full}" ' in manage("list", "vms", check=False).stdout:
        log.detail(f"removing the machine {full}")
        manage("controlvm", full, "poweroff", check=False)
        manage("unregistervm", full, "--delete")


def drop_image(vagrant_box: str) -> None:
    """Vagrant imports a box anew for each machine."""


def copy_disk(name: str, image: Image, work: Path) -> Path:
    """Copies the disk of a box that does not run, with all that lies on its snapshots."""
    found = _DISK.search(manage("showvminfo", domain(name), "--machinereadable").stdout)
    if not found:
        raise GuestError(f"VBoxManage shows no disk of {name}")
    whole, copy = work / "virtualbox.vdi", work / "virtualbox.qcow2"
    manage("clonemedium", "disk", found["path"], str(whole), "--format", "VDI", timeout_s=COPY_TIMEOUT_S)
    manage("closemedium", "disk", str(whole))  # VirtualBox would keep it in its list
    run(["qemu-img", "convert", "-f", "vdi", "-O", "qcow2", whole, copy], timeout_s=COPY_TIMEOUT_S)
    whole.unlink()
    return copy
