"""Snapshots of a machine: save, restore, list and delete. They work the same way with every driver.

The driver saves the disk, and the memory of a running box. The record and the logs of that moment are saved in a folder
of the machine.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import attrs

from kimbox.actions import mounts
from kimbox.actions.lifecycle.start import set_clock
from kimbox.actions.observe import refuse_sealed, refuse_stored_memory, state
from kimbox.actions.stop import HALT_TIMEOUT_S
from kimbox.drivers import registry
from kimbox.drivers.base import Launch
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.files import read_json, remove_tree, write_json
from kimbox.guest import shared
from kimbox.log import log
from kimbox.machine import forwarding, rebuilt
from kimbox.machine.folder import Machine
from kimbox.machine.mounts import check_folders
from kimbox.machine.record import Ended, Record
from kimbox.machine.state import State

#: File name of the saved record. It is written last: a folder without it is not a snapshot.
RECORD = "machine.json"

#: The name of a snapshot.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: States of a box that can be saved. The disk of a suspended box has a saved state already.
SAVED_STATES = frozenset({State.READY, State.FAILED, State.PROVISIONING, State.HALTED, State.CRASHED})


def check_name(name: str) -> str:
    """Returns the name of a snapshot. Raises UsageError if it is not valid."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} cannot be the name of a snapshot",
            code="bad-name",
            hint="use up to 63 lower-case letters, digits and . _ -, and start with a letter or digit",
            fields={"snapshot": name[:100]},
        )
    return name


def names(machine: Machine) -> list[str]:
    """Returns the names of all snapshots, sorted. Takes no lock. Raises StateError if there is no such box."""
    machine.record()
    former = [rebuilt.FORMER] if rebuilt.former(machine) else []
    return former + sorted(path.parent.name for path in machine.snapshots.glob(f"*/{RECORD}"))


def save(machine: Machine, name: str) -> State:
    """Saves the present state of a box, which then continues. Returns its state.

    Raises StateError if the name is taken, if the box is sealed or in a state that cannot be saved, or if its driver
    cannot save the memory of a running box.
    """
    with machine.locked():
        rebuilt.finish(machine)
        record = machine.record()
        refuse_sealed(machine, "save a snapshot of")
        now = state(machine)
        if name == rebuilt.FORMER:
            raise UsageError(
                f"the name {name} is that of the disk before `kimbox up --rebuild`",
                code="bad-name",
                hint="use another name",
                fields={"snapshot": name},
            )
        if name in names(machine):
            raise StateError(
                f"{machine.name} has a snapshot {name} already",
                code="snapshot-exists",
                hint=f"`kimbox snapshot delete {name} {machine.name}` removes it",
                fields={"name": machine.name, "snapshot": name},
            )
        if now not in SAVED_STATES:
            raise StateError(
                f"cannot save a snapshot of {machine.name}: the box is {now}",
                code="wrong-state",
                hint=f"first run `kimbox resume {machine.name}` or `kimbox up {machine.name}`",
                fields={"name": machine.name, "state": str(now), "reason": "state"},
            )
        if now.running:
            refuse_stored_memory(machine, "save a snapshot of")
        if now.running and record.scratch:
            raise StateError(
                f"cannot save a snapshot of {machine.name} while it runs, because it has scratch space",
                code="wrong-state",
                hint=f"first run `kimbox halt {machine.name}`",
                fields={"name": machine.name, "state": str(now), "reason": "scratch"},
            )
        if now.running:
            registry.need_memory_snapshots(machine)
        folder, driver = machine.snapshots / name, registry.of(machine)
        if folder.exists():  # left by an interrupted save: the disk may contain the snapshot, or a part of it
            with contextlib.suppress(KimboxError):
                driver.delete_snapshot(name)
            remove_tree(folder)
        folder.mkdir(parents=True)
        shared.retire(machine.folder)  # otherwise the restored guest waits for a connection that no longer exists
        whole = mounts.released(machine, renews=True) if now.running else contextlib.nullcontext()
        with whole, log.step(f"saving the snapshot {name} of {machine.name}"):
            driver.save_snapshot(name)
        for file in (machine.events_file, machine.provision_log, machine.serial_log):
            if file.exists():
                shutil.copyfile(file, folder / file.name)
        ended = None if now.running else record.ended or Ended.HALTED
        write_json(folder / RECORD, attrs.evolve(record, ended=ended).as_json())
        return now


def restore(machine: Machine, name: str) -> State:
    """Restores the saved state of a box, from any state of the box. Returns the state after it.

    A box that ran when it was saved resumes, and its clock is set. Raises StateError if there is no such snapshot, or
    if the box is sealed.
    """
    with machine.locked():
        rebuilt.finish(machine)
        record = machine.record()
        refuse_sealed(machine, "restore a snapshot of")
        folder = _folder(machine, name)
        if name == rebuilt.FORMER:
            return _go_back(machine)
        saved = _saved_record(machine, folder)
        driver = registry.of(machine)
        if saved.ended is None:
            check_folders(machine.name, saved.mounts)
        if record.ended is Ended.SUSPENDED:
            driver.drop_suspended()
        launch = Launch(
            attrs.evolve(
                record,
                cpus=saved.cpus,
                memory_bytes=saved.memory_bytes,
                delivery_disk=saved.delivery_disk,
                halt_port=saved.halt_port,
                mounts=saved.mounts,
                watchdog_s=saved.watchdog_s,
                networks=saved.networks,
                display=saved.display,
                ended=saved.ended,
            ),
            None,
            saved.cpus or 1,
            saved.memory_bytes or 0,
            resume=saved.ended is None,
        )
        shared.close(machine.folder)
        with log.step(f"restoring the snapshot {name} of {machine.name}"):
            machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
            for file in (machine.events_file, machine.provision_log, machine.serial_log):
                if (folder / file.name).exists():
                    shutil.copyfile(folder / file.name, file)
            restored = driver.restore_snapshot(launch, name)
        machine.write_record(attrs.evolve(restored, ended=saved.ended))
        if saved.ended is None:
            set_clock(machine)
            mounts.renew(machine)
        forwarding.ensure(machine, machine.record())
        return state(machine)


def _go_back(machine: Machine) -> State:
    """Exchanges the disk of a box with the one before `up --rebuild`. The box is halted then."""
    driver, before = registry.of(machine), state(machine)
    with log.step(f"exchanging the disk of {machine.name} with the former one"):
        if before.running:
            driver.stop(before, force=False, timeout_s=HALT_TIMEOUT_S)
        shared.close(machine.folder)
        driver.tidy()
        rebuilt.go_back(machine)
    return state(machine)


def delete(machine: Machine, name: str) -> None:
    """Deletes a snapshot. The box does not change. Raises StateError if there is no such snapshot."""
    with machine.locked():
        rebuilt.finish(machine)
        machine.record()
        is_whole = name in names(machine)
        folder = machine.snapshots / name
        # A killed save or delete leaves a folder without a record. The disk has the snapshot, a part of it, or nothing.
        is_left = not is_whole and _NAME.fullmatch(name) is not None and folder.exists()
        if not is_left:
            folder = _folder(machine, name)
        if name == rebuilt.FORMER:
            rebuilt.remove_former(machine)
            return
        with log.step(f"deleting the snapshot {name} of {machine.name}"):
            if is_left:
                with contextlib.suppress(KimboxError):
                    registry.of(machine).delete_snapshot(name)
            else:
                _delete_whole(machine, folder)
        remove_tree(folder)


def _delete_whole(machine: Machine, folder: Path) -> None:
    """Deletes a snapshot from the disk. Meanwhile it has no record, so that what is left of it cannot be restored."""
    record = folder / RECORD
    former = record.rename(record.with_suffix(".deleted"))
    try:
        registry.of(machine).delete_snapshot(folder.name)
    except KimboxError:
        former.rename(record)
        raise


def _folder(machine: Machine, name: str) -> Path:
    """Returns the folder of a snapshot. Raises StateError if there is no such snapshot."""
    existing = names(machine)
    if name not in existing:
        saves = f"`kimbox snapshot save {name[:100]} {machine.name}` saves one"
        raise StateError(
            f"{machine.name} has no snapshot {name[:100]}",
            code="snapshot-not-found",
            hint=f"it has the snapshots {', '.join(existing)}" if existing else saves,
            fields={"name": machine.name, "snapshot": name[:100]},
        )
    return machine.snapshots / name


def _saved_record(machine: Machine, folder: Path) -> Record:
    """Returns the record of a snapshot. Raises KimboxError if it is damaged."""
    try:
        return Record.parse(read_json(folder / RECORD), folder / RECORD)
    except KimboxError as error:
        hint = f"`kimbox snapshot delete {folder.name} {machine.name}` removes the snapshot"
        raise KimboxError(error.message, code=error.code, hint=hint, fields=error.fields) from None
