"""The disks of a machine under QEMU: its qcow2 overlay, its scratch space, and the states that are saved in them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimbox.drivers.qemu import qmp
from kimbox.errors import GuestError, ImageError, KimboxError, StateError
from kimbox.files import sync_file, sync_folder
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.templates import OVERLAY, SCRATCH
from kimbox.run import run
from kimbox.sparse import copy_sparse
from kimbox.spec.layout import SECTOR_BYTES
from kimbox.spec.model import Scratch

if TYPE_CHECKING:
    from kimbox.image.store.images import Image

#: Tag of the saved state in the disks of a suspended machine.
SUSPENDED_TAG = "kimbox-suspend"

#: Prefix of the tags of snapshots that users create.
SNAPSHOT_PREFIX = "kimbox-snapshot-"

#: Timeout of a job that saves the memory of a guest in its disk, or removes it.
SAVE_TIMEOUT_S = 600.0

#: Timeout of `qemu-img info`.
INFO_TIMEOUT_S = 60.0


def create(disk: Path, image: Path, image_format: str, size_bytes: int) -> None:
    """Creates an overlay of `size_bytes` on an image."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", image_format, disk, str(size_bytes)])


def on_template(machine: Machine, template: Path) -> None:
    """Creates the disk of a clone, and its scratch space if the template has one: overlays on those of the template.

    The first is a copy of an empty overlay that the template holds, which is faster than `qemu-img`.
    """
    copy_sparse(template / OVERLAY, machine.disk)
    machine.disk.chmod(0o600)
    if (template / SCRATCH).exists():
        overlay(machine.scratch, template / SCRATCH)


def overlay(disk: Path, below: Path, at: Path | None = None) -> None:
    """Creates an overlay on a qcow2 disk. `at`: the path that the disk will have when the overlay is used."""
    info: dict[str, Any] = json.loads(run(["qemu-img", "info", "--output=json", "-f", "qcow2", below]).stdout)
    size = str(info["virtual-size"])
    run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", at or below, "-F", "qcow2", disk, size])


def leave_template(machine: Machine, image_key: str) -> bool:
    """Copies what the template has changed into the disk of a clone, which is then an overlay on the image.

    Returns False, and does nothing, if the disk has snapshots: they do not contain the copied data. A killed kimbox
    leaves a disk with the same content. Raises ImageError (`image-not-found`).
    """
    if snapshots(machine):
        return False
    image = _image(machine, image_key)
    run(["qemu-img", "rebase", "-f", "qcow2", "-F", image.format, "-b", image.disk, machine.disk])
    return True


def _image(machine: Machine, image_key: str) -> Image:
    """Returns the image of a machine. Raises ImageError (`image-not-found`) if it is not in the store."""
    from kimbox.image.store import images

    if image := images.find(image_key):
        return image
    raise ImageError(
        f"the disk of {machine.name} cannot be put back: its image is not in the store ({image_key[:12]})",
        code="image-not-found",
        hint="`kimbox destroy` and `kimbox up` create the box again, from a new image",
        fields={"name": machine.name, "image": image_key},
    )


def put_back(machine: Machine, image_key: str) -> tuple[str, ...]:
    """Replaces the disk of a machine that does not run by an overlay that has only its volume `persistent`.

    The new disk takes the place of the old one in one rename, so that a killed kimbox leaves one of the two. States and
    snapshots in the old disk are gone. Returns the parts that differed from the image. Raises ImageError
    (`image-not-found`), and the errors of `pristine.restore`.
    """
    from kimbox.image.disk import pristine

    image = _image(machine, image_key)
    machine.new_disk.unlink(missing_ok=True)  # left by an interrupted start
    changed = pristine.differences(machine.disk, image.disk, image.format)
    pristine.restore(machine.disk, image.disk, image.format, machine.new_disk)
    machine.new_disk.replace(machine.disk)
    sync_folder(machine.folder)
    return changed


def size_bytes(disk: Path) -> int:
    """Returns the size of a qcow2 as the guest sees it. Raises ImageError (`disk-unreadable`).

    Format: QEMU, docs/interop/qcow2.rst, bytes 24 to 31 of the header.
    """
    with disk.open("rb") as file:
        head = file.read(32)
    if len(head) < 32 or not head.startswith(b"QFI\xfb"):
        raise ImageError(f"{disk} is not a qcow2 disk", code="disk-unreadable", fields={"path": str(disk)})
    return int.from_bytes(head[24:32], "big")


def grow(machine: Machine, wanted_bytes: int) -> None:
    """Makes the disk of a machine that does not run larger, and with it the partition of LVM, if it is kimbox's.

    The partition of another image is left to its guest. A killed kimbox leaves a disk that the next call completes.
    Raises StateError (`has-snapshots`) and ImageError.
    """
    from kimbox.image.disk import grubenv, nbd, sectors
    from kimbox.image.disk.view import DiskView

    if wanted_bytes > size_bytes(machine.disk):
        if names := snapshots(machine):
            raise StateError(
                f"the disk of {machine.name} cannot grow: it has snapshots of its present size: "
                f"{', '.join(names):.200}",
                code="has-snapshots",
                hint=f"`kimbox snapshot delete {names[0]} {machine.name}` removes one of them",
                fields={"name": machine.name, "snapshots": " ".join(names)},
            )
        run(["qemu-img", "resize", "-q", "-f", "qcow2", machine.disk, str(wanted_bytes)])
        sync_file(machine.disk)
    with nbd.opened(machine.disk, "qcow2") as opened:
        sector = opened.read(0, SECTOR_BYTES)
        try:
            grubenv.place_for_boot_loader(DiskView.of(opened.read, opened.size_bytes))
        except ImageError as error:
            log.detail(f"the partitions of {machine.name} are left to its guest: {error.message}")
            return
    new = sectors.grown(sector, wanted_bytes)
    if new != sector:
        with nbd.opened(machine.disk, "qcow2", writable=True) as opened:
            opened.write(0, new)
            opened.flush()


def create_scratch(machine: Machine, scratch: Scratch | None) -> None:
    """Replaces the scratch space of the last run by an empty one. `scratch` None: removes it."""
    if scratch is None:
        remove_scratch(machine)
        return
    new = machine.scratch.with_name(f"{machine.scratch.name}.new")
    run(["qemu-img", "create", "-q", "-f", "qcow2", new, str(scratch.size_bytes)])  # qcow2 can hold a saved state
    new.replace(machine.scratch)


def remove_scratch(machine: Machine) -> None:
    """Removes the scratch space of a machine that does not run, with all data in it."""
    machine.scratch.unlink(missing_ok=True)


def snapshot_tag(name: str) -> str:
    """Returns the tag in the disk of a snapshot that a user created."""
    return f"{SNAPSHOT_PREFIX}{name}"


def snapshots(machine: Machine) -> list[str]:
    """Returns the snapshots in the disk of a machine that does not run, and the tags of other programs."""
    command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(machine.disk)]
    info: dict[str, Any] = json.loads(run(command, timeout_s=INFO_TIMEOUT_S).stdout)
    tags = [str(snapshot["name"]) for snapshot in info.get("snapshots", ())]
    return [tag.removeprefix(SNAPSHOT_PREFIX) for tag in tags if tag != SUSPENDED_TAG]


def suspend(machine: Machine) -> None:
    """Saves memory and devices of a running machine in its disks. Its processors are stopped afterwards."""
    forget_suspended(machine)  # QEMU rejects a second state with the same tag
    _save(machine, SUSPENDED_TAG)


def forget_suspended(machine: Machine) -> None:
    """Removes the saved state, if it exists, from the disks of a running machine."""
    _remove_from_running(machine, SUSPENDED_TAG)


def drop_suspended(machine: Machine) -> None:
    """Removes the saved state, if it exists, and the scratch space of a machine that does not run."""
    _remove_from_halted(machine, SUSPENDED_TAG)
    remove_scratch(machine)


def save_snapshot(machine: Machine, name: str) -> None:
    """Saves the disk and, if the machine runs, its memory. The machine continues to run."""
    if not machine.running:
        run(["qemu-img", "snapshot", "-c", snapshot_tag(name), machine.disk])
        return
    _save(machine, snapshot_tag(name))
    qmp.execute(machine.qmp_socket, "cont")


def revert(machine: Machine, name: str) -> None:
    """Restores the disk of a machine that does not run from a snapshot."""
    run(["qemu-img", "snapshot", "-a", snapshot_tag(name), machine.disk])


def delete_snapshot(machine: Machine, name: str) -> None:
    """Removes a snapshot from the disk, if it exists."""
    if machine.running:
        _remove_from_running(machine, snapshot_tag(name))
    else:
        _remove_from_halted(machine, snapshot_tag(name))


def _save(machine: Machine, tag: str) -> None:
    """Saves the state of a running machine, whose processors are stopped afterwards. If that fails, they continue."""
    nodes = _nodes(machine)
    arguments = {"job-id": "save", "tag": tag, "vmstate": nodes[0], "devices": nodes}
    try:
        qmp.execute(machine.qmp_socket, "stop", timeout_s=SAVE_TIMEOUT_S)  # `stop` flushes QEMU's caches first
        qmp.run_job(machine.qmp_socket, "snapshot-save", arguments, timeout_s=SAVE_TIMEOUT_S)
    except KimboxError:
        with contextlib.suppress(KimboxError):
            qmp.execute(machine.qmp_socket, "cont")
        raise
    if machine.scratch.exists():  # with cache=unsafe QEMU does not flush it
        sync_file(machine.scratch)


def _remove_from_running(machine: Machine, tag: str) -> None:
    """Removes a saved state from the disks of a running machine."""
    arguments = {"job-id": "forget", "tag": tag, "devices": _nodes(machine)}
    qmp.run_job(machine.qmp_socket, "snapshot-delete", arguments, timeout_s=SAVE_TIMEOUT_S)


def _remove_from_halted(machine: Machine, tag: str) -> None:
    """Removes a saved state, if it exists, from the disk of a machine that does not run."""
    run(["qemu-img", "snapshot", "-d", tag, machine.disk], check=False)


def _nodes(machine: Machine) -> list[str]:
    """Returns QEMU's node names of a running machine's disk and, if it has one, of its scratch space.

    Raises GuestError (`unexpected-output`) if QEMU reports no disk.
    """
    blocks = {block.get("device"): block for block in qmp.execute(machine.qmp_socket, "query-block")}
    if "disk0" not in blocks:
        message = f"QEMU does not report the disk of {machine.name}"
        raise GuestError(message, code="unexpected-output", fields={"name": machine.name})
    return [str(blocks[name]["inserted"]["node-name"]) for name in ("disk0", "scratch0") if name in blocks]
