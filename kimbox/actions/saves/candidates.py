"""Which machines can be saved, and where those without a store go."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from kimbox import paths
from kimbox.actions.observe import state
from kimbox.actions.saves import found
from kimbox.drivers import registry
from kimbox.errors import StateError
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.machine.state import State
from kimbox.run import run
from kimbox.transfer.stores.opening import open_store

#: State -> how a machine in it becomes halted, with a disk that was unmounted.
_HALTING = {
    State.CRASHED: "`kimbox up {name}` repairs its disk, and then `kimbox halt {name}` shuts it down",
    State.SUSPENDED: "`kimbox resume {name}` and then `kimbox halt {name}` shut it down",
}


def default_store(machine: Machine) -> Path:
    """Returns the folder on this host for the saves of a machine whose spec names no store."""
    return paths.home() / "saves" / machine.name


def has_save(machine: Machine) -> bool:
    """Whether the folder on this host has a save of a machine."""
    folder = default_store(machine)
    if not folder.is_dir():
        return False
    with contextlib.closing(open_store(str(folder))) as store:
        return found.newest(store) is not None


def check_before_halt(machine: Machine, url: str) -> None:
    """Checks that a machine can be saved when it is halted, and that the store answers.

    Raises StateError if the machine is sealed or has no disk of kimbox's own, and the errors of the store.
    """
    _refuse(machine, machine.record())
    with contextlib.closing(open_store(url)) as store:
        found.newest(store)


def check(machine: Machine, record: Record) -> None:
    """Raises StateError if the machine is sealed, or not halted, or has no disk of kimbox's own."""
    name = machine.name
    _refuse(machine, record)
    now = state(machine)
    if now is not State.HALTED:
        raise StateError(
            f"cannot save {name}: it is {now}, not halted",
            code="wrong-state",
            hint=_HALTING.get(now, "`kimbox halt {name}` shuts it down").format(name=name),
            fields={"verb": "save", "name": name, "state": str(now)},
        )
    if names := registry.of(machine).disk_snapshots():
        log.warn(f"the snapshots of {name} are not in the save: {', '.join(names):.200}")


def overlays(machine: Machine, image: Image) -> list[Path]:
    """Returns the disk of a machine and the overlays below it, without the image.

    Raises StateError if something else is below it.
    """
    command = ["qemu-img", "info", "--output=json", "--backing-chain", "-f", "qcow2", str(machine.disk)]
    chain: list[dict[str, Any]] = json.loads(run(command, timeout_s=60).stdout)
    files = [Path(one["filename"]) for one in chain]
    if files[-1].resolve() != image.disk.resolve():
        raise StateError(
            f"cannot save {machine.name}: its disk is not based on the image that it was made from",
            code="wrong-state",
            fields={"verb": "save", "name": machine.name, "backing_file": str(files[-1])},
        )
    return files[:-1]


def _refuse(machine: Machine, record: Record) -> None:
    """Raises StateError if the machine is sealed, or has no disk of kimbox's own."""
    name = machine.name
    registry.need_own_disk(machine, "save")
    if record.sealed or machine.unseal_mark.exists():
        raise StateError(
            f"cannot save {name}: it is sealed, and a save would contain its credentials and what programs in it wrote",
            code="box-sealed",
            hint=f"`kimbox secure --unseal {name}` opens the box and removes its credentials",
            fields={"name": name, "verb": "save"},
        )
