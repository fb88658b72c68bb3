"""Snapshots of a machine: save, restore, list and delete, the same for every driver.

The driver saves the disk, and the memory of a box that runs. A folder of the machine holds the rest: the record and the
logs of that moment.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import attrs

from kimbox.actions.lifecycle.start import set_clock
from kimbox.actions.observe import refuse_sealed, state
from kimbox.drivers import registry
from kimbox.drivers.base import Launch
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.files import read_json, remove_tree, write_json
from kimbox.guest import shared
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record
from kimbox.machine.state import State

#: The record of that moment. It is written last: a folder without it is not a snapshot.
RECORD = "machine.json"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: States of a box that can be saved. A suspended box has a saved state in the same disk already.
SAVED_STATES = frozenset({State.READY, State.FAILED, State.PROVISIONING, State.HALTED, State.CRASHED})


def check_name(name: str) -> str:
    """Returns the name. Raises UsageError if a snapshot may not have it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} cannot be the name of a snapshot",
            hint="lower-case letters, digits and . _ - , at most 63, starting with a letter or digit",
        )
    return name


def names(machine: Machine) -> list[str]:
    """Every snapshot of a machine, sorted. Raises StateError if there is no such box. Takes no lock."""
    machine.record()
    return sorted(path.parent.name for path in machine.snapshots.glob(f"*/{RECORD}"))


def save(machine: Machine, name: str) -> State:
    """Saves a box as it is now; it goes on. Returns its state. Raises StateError if the name is taken."""
    with machine.locked():
        record = machine.record()
        refuse_sealed(machine, "keep a snapshot of")
        now = state(machine)
        if name in names(machine):
            hint = f"`kimbox snapshot delete {name} {machine.name}` removes it"
            raise StateError(f"{machine.name} has a snapshot {name} already", hint=hint)
        if now not in SAVED_STATES:
            raise StateError(
                f"cannot keep {machine.name}: the box is {now}",
                hint=f"`kimbox resume {machine.name}` or `kimbox up {machine.name}` first",
            )
        if now.running and record.scratch:
            hint = f"`kimbox halt {machine.name}` first"
            raise StateError(f"{machine.name} has scratch space, which a snapshot cannot keep while it runs", hint=hint)
        if now.running:
            registry.need_memory_snapshots(machine)
        folder, driver = machine.snapshots / name, registry.of(machine)
        if folder.exists():  # of a save that was interrupted: the disk may hold all of it, or a part
            with contextlib.suppress(KimboxError):
                driver.delete_snapshot(name)
            remove_tree(folder)
        folder.mkdir(parents=True)
        shared.retire(machine.folder)  # or the restored guest would wait for a connection that is gone
        with log.step(f"keeping {machine.name} as {name}"):
            driver.save_snapshot(name)
        for file in (machine.events_file, machine.provision_log, machine.serial_log):
            if file.exists():
                shutil.copyfile(file, folder / file.name)
        ended = None if now.running else record.ended or Ended.HALTED
        write_json(folder / RECORD, attrs.evolve(record, ended=ended).as_json())
        return now


def restore(machine: Machine, name: str) -> State:
    """Makes a box what it was when it was saved, from any state; returns its state then.

    A box that ran when it was saved resumes, and its clock is set.
    """
    with machine.locked():
        record = machine.record()
        refuse_sealed(machine, "restore a snapshot of")
        folder = _folder(machine, name)
        then = Record.parse(read_json(folder / RECORD), folder / RECORD)
        driver = registry.of(machine)
        if record.ended is Ended.SUSPENDED:
            driver.drop_suspended()
        launch = Launch(
            attrs.evolve(record, cpus=then.cpus, memory_bytes=then.memory_bytes, ended=then.ended),
            None,
            then.cpus or 1,
            then.memory_bytes or 0,
            resume=then.ended is None,
        )
        shared.close(machine.folder)
        with log.step(f"going back to {name} of {machine.name}"):
            machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
            for file in (machine.events_file, machine.provision_log, machine.serial_log):
                if (folder / file.name).exists():
                    shutil.copyfile(folder / file.name, file)
            after = driver.restore_snapshot(launch, name)
        machine.write_record(attrs.evolve(after, ended=then.ended))
        if then.ended is None:
            set_clock(machine)
        return state(machine)


def delete(machine: Machine, name: str) -> None:
    """Deletes a snapshot; the box stays as it is. Raises StateError if there is none of that name."""
    with machine.locked():
        machine.record()
        folder = _folder(machine, name)
        with log.step(f"removing {name} of {machine.name}"):
            registry.of(machine).delete_snapshot(name)
        remove_tree(folder)


def _folder(machine: Machine, name: str) -> Path:
    """The folder of a snapshot. Raises StateError if there is none of that name."""
    known = names(machine)
    if name not in known:
        hint = f"it has {', '.join(known)}" if known else f"`kimbox snapshot save NAME {machine.name}` makes one"
        raise StateError(f"{machine.name} has no snapshot {name[:100]}", hint=hint)
    return machine.snapshots / name
