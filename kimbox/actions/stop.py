"""Stops or removes a machine: halt, suspend, destroy. Needs no spec, image or ssh library."""

from __future__ import annotations

import attrs

from kimbox.actions import mounts
from kimbox.actions.observe import refuse_sealed, refuse_stored_memory, state
from kimbox.drivers import registry
from kimbox.errors import StateError
from kimbox.files import erase, remove_tree
from kimbox.guest import shared
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.machine.state import State, require

#: Timeout of the shutdown of a guest, in seconds. After it the guest is powered off.
HALT_TIMEOUT_S = 90.0


def halt(machine: Machine, *, force: bool = False, timeout_s: float = HALT_TIMEOUT_S) -> State:
    """Shuts a box down, and powers it off after `timeout_s`. Returns the state before.

    `force` powers the box off without a shutdown. A suspended box loses its saved state and keeps its disk. Raises
    StateError if there is no such box, or, without `force`, if it is suspended.
    """
    with machine.locked():
        record = machine.record()
        driver = registry.of(machine)
        before = state(machine)
        if before is State.SUSPENDED and force:
            driver.drop_suspended()
            machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
        if before is State.SUSPENDED and not force:
            raise StateError(
                f"cannot halt {machine.name}: it is suspended, and its memory is saved",
                code="wrong-state",
                hint=f"`kimbox resume {machine.name}` and then `kimbox halt {machine.name}` shut it down; "
                f"`kimbox halt --force {machine.name}` discards the saved memory",
                fields={"verb": "halt", "name": machine.name, "state": str(before)},
            )
        if not before.running:
            if before is not State.SUSPENDED:  # a box that crashed or shut itself down leaves its scratch space
                driver.tidy()
            return before
        with log.step(f"halting {machine.name}"):
            driver.stop(before, force=force, timeout_s=timeout_s)
        shared.close(machine.folder)  # a guest that lost its network or was powered off does not close it
        machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
        driver.tidy()
        return before


def suspend(machine: Machine) -> None:
    """Saves the state of a running box, with its memory, and stops it.

    Raises StateError if the box is sealed or in a state that does not allow it, or if its driver cannot.
    """
    with machine.locked():
        record = machine.record()
        refuse_sealed(machine, "suspend")
        refuse_stored_memory(machine, "suspend")
        registry.need_suspend(machine)
        require("suspend", machine.name, state(machine))
        shared.close(machine.folder)  # while the guest runs, so that it closes its end of the connection
        with mounts.released(machine, renews=False), log.step(f"suspending {machine.name}"):
            registry.of(machine).suspend(lambda: machine.write_record(attrs.evolve(record, ended=Ended.SUSPENDED)))


def destroy(machine: Machine, *, only_remains: bool = False) -> bool:
    """Removes a machine with all its files on this host, except the empty lock file. Returns whether it existed.

    `only_remains`: removes only what an interrupted creation or removal left, and nothing if the machine exists.

    The key of a sealed box is overwritten, too, because without it the credentials on the removed disk cannot be read.

    A process that waits for the lock has that file open. If the file were removed, the next process would lock a new
    file, and both processes would run.
    """
    with machine.locked():
        if only_remains and machine.exists:
            return False
        existed = machine.folder.exists() or machine.unfinished.exists()
        shared.close(machine.folder)
        for secret in (machine.data_key, machine.rotate_file):
            erase(secret)
        registry.of(machine).destroy()
        remove_tree(machine.unfinished)
    return existed
