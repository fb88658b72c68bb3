"""Removes objects in libvirt that Vagrant does not remove, with virsh(1). kimbox finds them by their names.

A domain has the name `kimbox-TAG-MACHINE`, and the names of its volumes begin with it. TAG is different for each
$KIMBOX_HOME. The image of a Vagrant box is a volume whose name begins with `kimbox-TAG-`, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kimbox.drivers.names import domain
from kimbox.files import read_bounded
from kimbox.image.formats import boxwriter
from kimbox.image.formats.compressor import Compression
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.run import Completed, require, run
from kimbox.spec.model import Box

#: Name of the hypervisor in Vagrant, and state of a machine -> whether it runs, and whether it is paused.
NAME = "libvirt"
STATES = {
    "running": (True, False), "inaccessible": (True, False), "paused": (True, True), "pmsuspended": (True, True),
    "blocked": (True, False), "shutting_down": (True, False), "shutdown": (True, False),
    "shutoff": (False, False), "crashed": (False, False), "nostate": (False, False), "not_created": (False, False),
    "preparing": (True, False),
}  # fmt: skip

#: URI of the system's libvirt, and the storage pool for the disks of vagrant-libvirt.
URI = "qemu:///system"
POOL = "default"

#: In the name of the volume of a box's image, vagrant-libvirt writes this after the name of the box.
IMAGE_MARK = "_vagrant_box_image_"

#: Rest of the name of a domain's volume, after the name of the domain: the disk from the box, or another disk. The name
#: of another box may begin with the name of this one, so the whole rest must match.
_DISKS = re.compile(r"(\.img|-[hsv]d[a-z]{1,2}\.qcow2)")

#: Path in the machine's folder of the file in which Vagrant writes the UUIDs of the networks that it created.
_NETWORKS = ".vagrant/machines/{name}/libvirt/created_networks"

#: Timeout of every other command of virsh, in seconds.
TIMEOUT_S = 60.0

#: Timeout of a copy of a whole disk, in seconds.
COPY_TIMEOUT_S = 3600.0

_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.MULTILINE)
_CONNECTED = re.compile(r"<network[^<>]* connections=")


def require_program() -> None:
    """Raises MissingToolError if virsh is not installed."""
    require("virsh", "it finds and removes the objects that Vagrant leaves in libvirt")


def virsh(*arguments: str, check: bool = True, timeout_s: float = TIMEOUT_S) -> Completed:
    """Runs virsh. Raises CommandError, with its output, if it fails."""
    return run(["virsh", "--quiet", "--connect", URI, *arguments], check=check, timeout_s=timeout_s)


def networks(folder: Path, name: str) -> list[str]:
    """Returns the UUIDs of the networks that Vagrant created for a machine and has not removed."""
    file = folder / _NETWORKS.format(name=name)
    return _UUID.findall(read_bounded(file).decode("utf-8", "replace")) if file.exists() else []


def remove_leftovers(name: str, created_networks: Sequence[str] = ()) -> None:
    """Removes the domain of a machine with its snapshots, saved state and volumes, as far as they exist.

    Of `created_networks`, those are removed that no other domain uses.
    """
    full = domain(name)
    if full in virsh("list", "--all", "--name", check=False).stdout.split():
        log.detail(f"removing the domain {full}")
        virsh("destroy", full, check=False)
        virsh("undefine", full, "--managed-save", "--snapshots-metadata")
    for volume in volumes():
        if volume.startswith(full) and _DISKS.fullmatch(volume, len(full)):
            log.detail(f"removing the volume {volume}")
            virsh("vol-delete", volume, "--pool", POOL)
    for network in created_networks:
        shown = virsh("net-dumpxml", network, check=False)
        if shown.ok and not _CONNECTED.search(shown.stdout):
            log.detail(f"removing the network {network}")
            virsh("net-destroy", network, check=False)
            virsh("net-undefine", network, check=False)


def write_box(box: Box, image: Image, target: Path) -> None:
    """Writes the image as a Vagrant box to the file `target`."""
    boxwriter.libvirt(image.disk, image.format, target, compression=Compression.NONE)


def copy_disk(name: str, image: Image, work: Path) -> Path:
    """Copies the disk of a machine that does not run from the pool. The copy is an overlay on `image`.

    Raises CommandError if the disk does not exist.
    """
    copy = work / "libvirt.qcow2"
    arguments = ["vol-download", f"{domain(name)}.img", str(copy), "--pool", POOL, "--sparse"]
    virsh(*arguments, timeout_s=COPY_TIMEOUT_S)
    # Its backing volume was made from the same image, and has the same content.
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", image.format, "-b", image.disk, copy])
    return copy


def volumes() -> list[str]:
    """Returns the names of the volumes in the pool, or none if the pool does not exist."""
    listed = virsh("vol-list", POOL, check=False)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.strip()] if listed.ok else []


def remove_image(vagrant_box: str) -> None:
    """Removes the volume of the image of a Vagrant box."""
    for volume in volumes():
        if volume.startswith(f"{vagrant_box}{IMAGE_MARK}"):
            log.detail(f"removing the volume {volume}")
            virsh("vol-delete", volume, "--pool", POOL)
