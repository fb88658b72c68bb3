"""Snapshots of a machine: kept, gone back to, listed and removed; the same for every provider.

The disk, and the memory of a box that ran, are the provider's to keep. Beside that a folder of the machine has what
else belongs to the moment: its record, and what the guest had told by then.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import attrs

from kimbox.actions.life import set_clock
from kimbox.actions.observe import refuse_sealed, state
from kimbox.drivers import provider as providers
from kimbox.drivers.provider import Launch
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.files import read_json, remove_tree, write_json
from kimbox.guest import shared
from kimbox.log import log
from kimbox.machine.folder import Ended, Machine, Record
from kimbox.machine.state import State

#: The record of then; it is written last, and makes a snapshot one.
RECORD = "machine.json"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: States of a box that can be kept. One that sleeps has a saved state already, and would not be the same after it.
KEPT = frozenset({State.READY, State.FAILED, State.PROVISIONING, State.HALTED, State.CRASHED})


def check_name(name: str) -> str:
    """The name, if a snapshot may have it. Raises UsageError."""
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
    """Keeps a box as it is now; it goes on. Returns its state. Raises StateError if there is one of that name."""
    with machine.locked():
        record = machine.record()
        refuse_sealed(machine, "keep a snapshot of")
        now = state(machine)
        if name in names(machine):
            hint = f"`kimbox snapshot delete {name} {machine.name}` removes it"
            raise StateError(f"{machine.name} has a snapshot {name} already", hint=hint)
        if now not in KEPT:
            raise StateError(
                f"cannot keep {machine.name}: the box is {now}",
                hint=f"`kimbox resume {machine.name}` or `kimbox up {machine.name}` first",
            )
        if now.running and record.scratch:
            hint = f"`kimbox halt {machine.name}` first"
            raise StateError(f"{machine.name} has scratch space, which a snapshot cannot keep while it runs", hint=hint)
        folder, provider = machine.snapshots / name, providers.of(machine)
        if folder.exists():  # a save that was cut short: the disk may have it, or a part of it
            with contextlib.suppress(KimboxError):
                provider.delete_snapshot(name)
            remove_tree(folder)
        folder.mkdir(parents=True)
        shared.retire(machine.folder)  # the guest of the snapshot should not wait for one that is long gone
        with log.step(f"keeping {machine.name} as {name}"):
            provider.save_snapshot(name)
        for file in (machine.events_file, machine.provision_log, machine.serial_log):
            if file.exists():
                shutil.copyfile(file, folder / file.name)
        ended = None if now.running else record.ended or Ended.HALTED
        write_json(folder / RECORD, attrs.evolve(record, ended=ended).as_json())
        return now


def restore(machine: Machine, name: str) -> State:
    """Makes a box what it was when it was kept, from any state; returns the one it is in then.

    A box that ran goes on where it stood, with its clock set right.
    """
    with machine.locked():
        record = machine.record()
        refuse_sealed(machine, "restore a snapshot of")
        folder = _folder(machine, name)
        then = Record.parse(read_json(folder / RECORD), folder / RECORD)
        provider = providers.of(machine)
        if record.ended is Ended.SUSPENDED:
            provider.drop_suspended()
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
            after = provider.restore_snapshot(launch, name)
        machine.write_record(attrs.evolve(after, ended=then.ended))
        if then.ended is None:
            set_clock(machine)
        return state(machine)


def delete(machine: Machine, name: str) -> None:
    """Removes a snapshot; the box stays as it is. Raises StateError if there is none of that name."""
    with machine.locked():
        machine.record()
        folder = _folder(machine, name)
        with log.step(f"removing {name} of {machine.name}"):
            providers.of(machine).delete_snapshot(name)
        remove_tree(folder)


def _folder(machine: Machine, name: str) -> Path:
    """Where a snapshot's own files lie."""
    known = names(machine)
    if name not in known:
        hint = f"it has {', '.join(known)}" if known else f"`kimbox snapshot save NAME {machine.name}` makes one"
        raise StateError(f"{machine.name} has no snapshot {name[:100]}", hint=hint)
    return machine.snapshots / name
