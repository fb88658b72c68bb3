"""Brings the disk of a halted machine to the size of what is in it. Needs neither a guest nor root."""

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
from kimbox.image.formats import slim
from kimbox.image.store import images
from kimbox.log import log
from kimbox.machine import bootmode
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.run import run
from kimbox.spec.model import BootMode

#: Between two words on how far it has come, in seconds.
REPORT_S = 2.0


@attrs.frozen
class Shrunk:
    """What came of it: the space that the disk took and takes, in bytes of the host's file system."""

    before_bytes: int
    after_bytes: int
    #: Whether the snapshot of root was emptied with it.
    dropped: bool
    #: What had to be kept whole, and why.
    notes: tuple[str, ...]


def shrink(machine: Machine, boot: BootMode | None, *, drop: bool = False, dry_run: bool = False) -> Shrunk:
    """Replaces the disk by one with all that is in use and no more, in one rename, if that one is smaller.

    The snapshot is kept unless `drop` is set or the next boot would empty it anyway: the spec's mode, `boot` (None: not
    known), and the disk's own both say resnap. Raises StateError for a box that is not shut down or has snapshots of
    its whole disk, ImageError where the disk is damaged; the disk is untouched then.
    """
    with machine.locked():
        _check(machine)
        image = images.find(machine.record().image)
        if image is None:
            raise ImageError(f"the image that {machine.name} was made from is not in the store")
        _check_disk(machine, image.disk)
        drop = drop or (boot is BootMode.RESNAP and _boots_resnap(machine))
        machine.new_disk.unlink(missing_ok=True)  # of one that was interrupted
        before = _size_bytes(machine.disk)
        try:
            with log.step(f"shrinking {machine.name}"):
                found = slim.overlay(
                    machine.disk, image.disk, image.format, machine.new_disk, drop_snapshots=drop, on_bytes=reporter()
                )
            after = _size_bytes(machine.new_disk)
            if after < before and not dry_run:
                machine.new_disk.replace(machine.disk)
                sync_folder(machine.folder)
        finally:
            machine.new_disk.unlink(missing_ok=True)
    return Shrunk(before, min(before, after), drop, found.notes)


def reporter() -> Callable[[int], None]:
    """Tells from time to time how far a disk is done."""
    told = time.monotonic()

    def report(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= REPORT_S:
            told = time.monotonic()
            log.now(f"{size_words(done)} of the disk")

    return report


def _check(machine: Machine) -> None:
    """Raises StateError if the box is not shut down."""
    machine.record()
    registry.need_own_disk(machine, "shrink")
    now = state(machine)
    if now is State.SUSPENDED:
        hint = f"`kimbox resume {machine.name}`, then `kimbox halt {machine.name}`"
    elif now.running:
        hint = f"`kimbox halt {machine.name}`"
    else:
        return
    raise StateError(f"cannot shrink {machine.name}: the box is {now}", hint=hint)


def _check_disk(machine: Machine, image: Path) -> None:
    """Raises StateError if the disk is not simply an overlay on the image."""
    told: dict[str, Any] = json.loads(
        run(["qemu-img", "info", "--output=json", "-f", "qcow2", machine.disk], timeout_s=60).stdout
    )
    if names := registry.of(machine).disk_snapshots():
        raise StateError(
            f"cannot shrink {machine.name}: its disk has snapshots, which would be lost: {', '.join(names):.200}",
            hint=f"`kimbox snapshot delete NAME {machine.name}` removes one; they hold the space, too",
        )
    below = told.get("full-backing-filename")
    if below is None or Path(below).resolve() != image.resolve():
        raise StateError(f"cannot shrink {machine.name}: its disk does not lie on the image that it was made from")


def _boots_resnap(machine: Machine) -> bool:
    """Whether the disk itself says that its next boot makes the snapshot anew."""
    with contextlib.suppress(bootmode.NoEnvironment):
        saved, once = bootmode.read_entries(machine)
        return (once or saved) == BootMode.RESNAP
    return False


def _size_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512
