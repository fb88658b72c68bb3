"""Reduces the disk of a halted machine to the data that it contains. Needs no guest and no root."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from kimbox.actions.observe import state
from kimbox.drivers import registry
from kimbox.errors import ImageError, StateError
from kimbox.files import size_words, sync_folder
from kimbox.image.disk import slim
from kimbox.image.store import images
from kimbox.log import log
from kimbox.machine import bootmode, rebuilt
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.run import run
from kimbox.spec.model import BootMode

#: Interval between two progress lines, in seconds.
REPORT_S = 2.0


@attrs.frozen
class Shrunk:
    """The result of `shrink`: the space that the disk took and takes, in bytes of the host's file system."""

    before_bytes: int
    after_bytes: int
    #: Whether the content of the snapshot of root was discarded.
    dropped: bool
    #: Volumes that were copied with their free space, and why.
    notes: tuple[str, ...]


def shrink(machine: Machine, boot: BootMode | None, *, drop: bool = False, dry_run: bool = False) -> Shrunk:
    """Replaces the disk by a copy of the data that is in use, in one rename, if the copy is smaller.

    The snapshot is kept unless `drop` is set or the next boot replaces it: if the mode of the spec, `boot` (None: not
    known), and the mode on the disk are both resnap. `dry_run`: the disk is not replaced.

    On an error the disk does not change. Raises StateError if the box is not shut down or has snapshots of its whole
    disk, ImageError if the disk is damaged.
    """
    with machine.locked():
        rebuilt.finish(machine)
        _check(machine)
        key = machine.record().image
        image = images.find(key)
        if image is None:
            raise ImageError(
                f"cannot shrink {machine.name}: the image that it was made from is not in the store ({key[:12]})",
                code="image-not-found",
                fields={"name": machine.name, "image": key},
            )
        _check_disk(machine, image.disk)
        drop = drop or (boot is BootMode.RESNAP and _boots_resnap(machine))
        machine.new_disk.unlink(missing_ok=True)  # an interrupted `shrink` leaves it
        before_bytes = _size_bytes(machine.disk)
        try:
            with log.step(f"shrinking {machine.name}"):
                overlay = slim.overlay(
                    machine.disk, image.disk, image.format, machine.new_disk, drop_snapshots=drop, on_bytes=reporter()
                )
            after_bytes = _size_bytes(machine.new_disk)
            if after_bytes < before_bytes and not dry_run:
                machine.new_disk.replace(machine.disk)
                sync_folder(machine.folder)
        finally:
            machine.new_disk.unlink(missing_ok=True)
    return Shrunk(before_bytes, min(before_bytes, after_bytes), drop, overlay.notes)


def reporter() -> Callable[[int], None]:
    """Returns a function that takes the number of bytes done, and logs it at most every REPORT_S seconds."""
    reported_at_s = time.monotonic()

    def report(done_bytes: int) -> None:
        nonlocal reported_at_s
        if time.monotonic() - reported_at_s >= REPORT_S:
            reported_at_s = time.monotonic()
            log.now(f"{size_words(done_bytes)} of the disk")

    return report


def _check(machine: Machine) -> None:
    """Raises StateError if the box is not shut down."""
    machine.record()
    registry.need_own_disk(machine, "shrink")
    now = state(machine)
    if now is State.SUSPENDED:
        hint = f"shut it down with `kimbox resume {machine.name}` and `kimbox halt {machine.name}`"
    elif now.running:
        hint = f"`kimbox halt {machine.name}` shuts it down"
    else:
        return
    raise StateError(
        f"cannot shrink {machine.name}: it is {now}",
        code="wrong-state",
        hint=hint,
        fields={"verb": "shrink", "name": machine.name, "state": str(now)},
    )


def _check_disk(machine: Machine, image: Path) -> None:
    """Raises StateError if the disk has snapshots, or is not an overlay on the image."""
    disk_info: dict[str, Any] = json.loads(
        run(["qemu-img", "info", "--output=json", "-f", "qcow2", machine.disk], timeout_s=60).stdout
    )
    if names := registry.of(machine).disk_snapshots():
        raise StateError(
            f"cannot shrink {machine.name}: its disk has snapshots, which would be lost: {', '.join(names):.200}",
            code="has-snapshots",
            hint=f"`kimbox snapshot delete {names[0]} {machine.name}` removes one of them",
            fields={"verb": "shrink", "name": machine.name, "snapshots": " ".join(names)},
        )
    backing_file = disk_info.get("full-backing-filename")
    if backing_file is None or Path(backing_file).resolve() != image.resolve():
        leave = f"`kimbox up {machine.name}` and `kimbox halt {machine.name}` make its disk independent of the template"
        raise StateError(
            f"cannot shrink {machine.name}: the backing file of its disk is not the image that it was made from",
            code="wrong-state",
            hint=leave if machine.record().template else None,
            fields={"verb": "shrink", "name": machine.name, "backing_file": str(backing_file)},
        )


def _boots_resnap(machine: Machine) -> bool:
    """Whether the boot mode on the disk is resnap, so that the next boot replaces the snapshot."""
    with contextlib.suppress(bootmode.NoEnvironment):
        saved, once = bootmode.read_entries(machine)
        return (once or saved) == BootMode.RESNAP
    return False


def _size_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512
