"""What Vagrant leaves in libvirt: found by the names that kimbox gives, and removed, through virsh(1).

Every domain is named `kimbox-TAG-BOX`, its volumes begin with that name, and TAG tells one $KIMBOX_HOME from another.
Images are volumes named after the Vagrant box, `kimbox-TAG-...` too, with which Vagrant never does away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kimbox.drivers.vagrant.names import domain
from kimbox.files import read_bounded
from kimbox.image.formats import boxwriter
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.run import Completed, require, run
from kimbox.spec.model import Box

#: Vagrant's word for it, and its words for the states of a machine, as Vagrant passes them on: running, standing still.
NAME = "libvirt"
STATES = {
    "running": (True, False), "inaccessible": (True, False), "paused": (True, True), "pmsuspended": (True, True),
    "blocked": (True, False), "shutting_down": (True, False), "shutdown": (True, False),
    "shutoff": (False, False), "crashed": (False, False), "nostate": (False, False), "not_created": (False, False),
    "preparing": (True, False),
}  # fmt: skip

#: The system's libvirt, and the pool in which vagrant-libvirt keeps its disks.
URI = "qemu:///system"
POOL = "default"

#: How vagrant-libvirt names the volume of a box's image, after the box's own name.
IMAGE_MARK = "_vagrant_box_image_"

#: How it names the disks of a domain, after the domain: the one made from the box, and those that it has beside.
#: Another box's name may begin as this one's, so that no more than that is ours.
_DISKS = re.compile(r"(\.img|-[hsv]d[a-z]{1,2}\.qcow2)")

#: Where it keeps the UUIDs of the networks that it made for a machine, in the machine's folder.
_NETWORKS = ".vagrant/machines/{name}/libvirt/created_networks"

TIMEOUT_S = 60.0

#: A whole disk is copied within this time.
COPY_TIMEOUT_S = 3600.0

_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.MULTILINE)
_CONNECTED = re.compile(r"<network[^<>]* connections=")


def needed() -> None:
    """Raises MissingToolError if virsh is not here."""
    require("virsh", "it tells what Vagrant left in libvirt")


def virsh(*words: str, check: bool = True, timeout_s: float = TIMEOUT_S) -> Completed:
    """Runs virsh. Raises CommandError, with its words, if it fails."""
    return run(["virsh", "--quiet", "--connect", URI, *words], check=check, timeout_s=timeout_s)


def networks(folder: Path, name: str) -> list[str]:
    """UUIDs of the networks that Vagrant made for a machine and has not removed."""
    file = folder / _NETWORKS.format(name=name)
    return _UUID.findall(read_bounded(file).decode("utf-8", "replace")) if file.exists() else []


def sweep(name: str, made: Sequence[str] = ()) -> None:
    """Removes the domain of a box with its snapshots, saved state and volumes, where there is any of it.

    Of the networks `made` for it those go, too, that no other domain is in.
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
    for network in made:
        shown = virsh("net-dumpxml", network, check=False)
        if shown.ok and not _CONNECTED.search(shown.stdout):
            log.detail(f"removing the network {network}")
            virsh("net-destroy", network, check=False)
            virsh("net-undefine", network, check=False)


def write_box(box: Box, image: Image, target: Path) -> None:
    """Makes the image a Vagrant box."""
    boxwriter.libvirt(image.disk, image.format, target, compress=False)


def copy_disk(name: str, image: Image, work: Path) -> Path:
    """Copies the disk of a box that does not run, as it lies in the pool: an overlay on the volume of its image.

    Raises CommandError if there is none.
    """
    copy = work / "libvirt.qcow2"
    words = ["vol-download", f"{domain(name)}.img", str(copy), "--pool", POOL, "--sparse"]
    virsh(*words, timeout_s=COPY_TIMEOUT_S)
    # The volume that it lies on was made of the same image, and holds the same.
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", image.format, "-b", image.disk, copy])
    return copy


def volumes() -> list[str]:
    """Names of the volumes in the pool; none where there is no such pool."""
    listed = virsh("vol-list", POOL, check=False)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.strip()] if listed.ok else []


def drop_image(vagrant_box: str) -> None:
    """Removes the volume of a Vagrant box's image."""
    for volume in volumes():
        if volume.startswith(f"{vagrant_box}{IMAGE_MARK}"):
            log.detail(f"removing the volume {volume}")
            virsh("vol-delete", volume, "--pool", POOL)
