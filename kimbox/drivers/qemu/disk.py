"""The disks of a machine under QEMU: its qcow2 overlay, its scratch space, and the states saved in them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from kimbox.drivers.qemu import qmp
from kimbox.errors import GuestError, KimboxError
from kimbox.files import sync_file
from kimbox.machine.folder import Machine
from kimbox.run import run
from kimbox.spec.model import Scratch

#: Tag of the saved state in the disks of a suspended machine.
SUSPENDED_TAG = "kimbox-suspend"

#: What the tags of users' snapshots begin with.
SNAPSHOT_PREFIX = "kimbox-snapshot-"

#: Timeout of saving the memory of a guest to its disk, or removing it.
SAVE_TIMEOUT_S = 600.0

#: Timeout of reading the header of a qcow2.
INFO_TIMEOUT_S = 60.0


def create(disk: Path, image: Path, image_format: str, size_bytes: int) -> None:
    """Creates an overlay of `size_bytes` on an image."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", image_format, disk, str(size_bytes)])


def create_scratch(machine: Machine, scratch: Scratch | None) -> None:
    """Replaces the scratch space of the last run by an empty one; None: removes it."""
    if scratch is None:
        drop_scratch(machine)
        return
    new = machine.scratch.with_name(f"{machine.scratch.name}.new")
    run(["qemu-img", "create", "-q", "-f", "qcow2", new, str(scratch.size_bytes)])  # qcow2: it can hold a saved state
    new.replace(machine.scratch)


def drop_scratch(machine: Machine) -> None:
    """Removes the scratch space of a machine that does not run, with all data in it."""
    machine.scratch.unlink(missing_ok=True)


def snapshot_tag(name: str) -> str:
    """The tag of a user's snapshot in the disk."""
    return f"{SNAPSHOT_PREFIX}{name}"


def snapshots(machine: Machine) -> list[str]:
    """Names of the snapshots in the disk of a machine that does not run; a tag that kimbox has not made is itself."""
    command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(machine.disk)]
    info: dict[str, Any] = json.loads(run(command, timeout_s=INFO_TIMEOUT_S).stdout)
    tags = [str(snapshot["name"]) for snapshot in info.get("snapshots", ())]
    return [tag.removeprefix(SNAPSHOT_PREFIX) for tag in tags if tag != SUSPENDED_TAG]


def suspend(machine: Machine) -> None:
    """Saves memory and devices of a running machine to its disks. Its processors are stopped afterwards."""
    forget_suspended(machine)  # QEMU refuses a second state with the same tag
    _save(machine, SUSPENDED_TAG)


def forget_suspended(machine: Machine) -> None:
    """Removes the saved state, if there is one, from the disks of a running machine."""
    _forget(machine, SUSPENDED_TAG)


def drop_suspended(machine: Machine) -> None:
    """Removes the saved state, if there is one, of a machine that does not run, and its scratch space."""
    _drop(machine, SUSPENDED_TAG)
    drop_scratch(machine)


def save_snapshot(machine: Machine, name: str) -> None:
    """Saves the disk and, where the machine runs, its memory. The machine goes on."""
    if not machine.running:
        run(["qemu-img", "snapshot", "-c", snapshot_tag(name), machine.disk])
        return
    _save(machine, snapshot_tag(name))
    qmp.execute(machine.qmp_socket, "cont")


def revert(machine: Machine, name: str) -> None:
    """Sets the disk of a machine that does not run back to a snapshot."""
    run(["qemu-img", "snapshot", "-a", snapshot_tag(name), machine.disk])


def delete_snapshot(machine: Machine, name: str) -> None:
    """Removes a snapshot from the disk, if it is there."""
    if machine.running:
        _forget(machine, snapshot_tag(name))
    else:
        _drop(machine, snapshot_tag(name))


def _save(machine: Machine, tag: str) -> None:
    """Saves the state of a running machine. Its processors are stopped afterwards, or go on where that failed."""
    nodes = _nodes(machine)
    arguments = {"job-id": "save", "tag": tag, "vmstate": nodes[0], "devices": nodes}
    try:
        qmp.execute(machine.qmp_socket, "stop", timeout_s=SAVE_TIMEOUT_S)  # `stop` flushes QEMU's caches first
        qmp.run_job(machine.qmp_socket, "snapshot-save", arguments, timeout_s=SAVE_TIMEOUT_S)
    except KimboxError:
        with contextlib.suppress(KimboxError):
            qmp.execute(machine.qmp_socket, "cont")
        raise
    if machine.scratch.exists():  # it has cache=unsafe: QEMU never flushes it
        sync_file(machine.scratch)


def _forget(machine: Machine, tag: str) -> None:
    """Removes a saved state from the disks of a running machine."""
    arguments = {"job-id": "forget", "tag": tag, "devices": _nodes(machine)}
    qmp.run_job(machine.qmp_socket, "snapshot-delete", arguments, timeout_s=SAVE_TIMEOUT_S)


def _drop(machine: Machine, tag: str) -> None:
    """Removes a saved state, if it is there, from the disk of a machine that does not run."""
    run(["qemu-img", "snapshot", "-d", tag, machine.disk], check=False)


def _nodes(machine: Machine) -> list[str]:
    """QEMU's node names of a running machine's disk and, after it, of its scratch space, if it has one."""
    blocks = {block.get("device"): block for block in qmp.execute(machine.qmp_socket, "query-block")}
    if "disk0" not in blocks:
        raise GuestError(f"QEMU knows no disk of {machine.name}")
    return [str(blocks[name]["inserted"]["node-name"]) for name in ("disk0", "scratch0") if name in blocks]
