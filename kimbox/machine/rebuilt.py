"""The disks of a machine whose disk is replaced as a whole: that which comes, and that which was there before.

machines/<name>/rebuild/   the new disk while `kimbox up --rebuild` writes it
machines/<name>/rebuilt/   the new disk when it is complete, until `finish` has put it in place
machines/<name>/former/    the disk that was there before: the snapshot `former`
machines/<name>/kept.tar   files of the former root that the guest has not got back yet

The folders have the same form: a disk, the record of the machine with this disk, its snapshots, and files that the
guest gets on it. The disk of `rebuild` or `former` is the next one as soon as that folder has the name `rebuilt`. All
else can be repeated.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from kimbox.files import read_json, remove_tree, sync_file, sync_folder, write_json
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record

#: Name of the snapshot of the disk before the last `kimbox up --rebuild`.
FORMER = "former"

#: Files in each of the folders. The record is written last.
DISK, RECORD, SNAPSHOTS, KEPT = "disk.qcow2", "machine.json", "snapshots", "kept.tar"


def work(machine: Machine) -> Path:
    """The folder with the new disk while it is written. It remains only if that was interrupted."""
    return machine.folder / "rebuild"


def _next(machine: Machine) -> Path:
    return machine.folder / "rebuilt"


def kept_files(machine: Machine) -> Path:
    """The archive with files of the former root, while the guest does not have them."""
    return machine.folder / KEPT


def former(machine: Machine) -> Record | None:
    """Returns the record of the machine with its former disk; None if there is none.

    Raises KimboxError (`file-damaged`).
    """
    return _read(machine.folder / FORMER)


def _read(folder: Path) -> Record | None:
    """Returns the record in one of the folders; None if it has none, as one that is being removed."""
    try:
        return Record.parse(read_json(folder / RECORD), folder / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None


def coming(machine: Machine) -> Record | None:
    """Returns the record of the machine with a new disk that is complete and not in its place; None if there is none.

    Raises KimboxError (`file-damaged`).
    """
    return _read(_next(machine))


def remove_former(machine: Machine) -> None:
    """Removes the former disk."""
    remove_tree(machine.folder / FORMER)


def replace(machine: Machine, record: Record) -> None:
    """Puts the disk in `work` in place of that of a machine that does not run. `record`: that of the machine with it.

    What is in `work` is on the host's disk when this returns.
    """
    folder = work(machine)
    sync_file(folder / DISK)
    write_json(folder / RECORD, record.as_json())
    sync_folder(folder)
    folder.rename(_next(machine))
    finish(machine)


def go_back(machine: Machine) -> None:
    """Exchanges the disk of a machine that does not run with the former one."""
    (machine.folder / FORMER).rename(_next(machine))
    finish(machine)


def finish(machine: Machine) -> None:
    """Completes `replace` or `go_back`, also one that was interrupted. The machine does not run then."""
    folder = _next(machine)
    record = _read(folder)
    if record is None:  # there is nothing to do, or the folder was being removed
        remove_tree(folder)
        return
    sync_folder(machine.folder)
    if (folder / DISK).exists():
        _set_aside(machine)
        kept_files(machine).unlink(missing_ok=True)  # of the disk that is replaced now
        (folder / DISK).replace(machine.disk)
    if (folder / SNAPSHOTS).exists():
        (folder / SNAPSHOTS).rename(machine.snapshots)
    if (folder / KEPT).exists():
        (folder / KEPT).replace(kept_files(machine))
    sync_folder(machine.folder)
    machine.write_record(record)
    remove_tree(folder)


def _set_aside(machine: Machine) -> None:
    """Makes the present disk the former one. It stays in its place, too, until the next one replaces it."""
    target = machine.folder / FORMER
    if not (target / DISK).exists() or not (target / DISK).samefile(machine.disk):
        new = target.with_suffix(".new")
        remove_tree(new)
        new.mkdir(mode=0o700)
        os.link(machine.disk, new / DISK)
        record = attrs.evolve(machine.record(), ended=Ended.HALTED)
        write_json(new / RECORD, record.as_json())
        remove_tree(target)
        new.rename(target)
    if machine.snapshots.exists():
        machine.snapshots.rename(target / SNAPSHOTS)
