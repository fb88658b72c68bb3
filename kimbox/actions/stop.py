"""The ends of a machine's run, and of a machine: halt, suspend, destroy. Needs no spec, image or ssh library."""

from __future__ import annotations

import attrs

from kimbox.actions.observe import refuse_sealed, state
from kimbox.drivers import provider as providers
from kimbox.files import remove_tree
from kimbox.guest import shared
from kimbox.log import log
from kimbox.machine.folder import Ended, Machine
from kimbox.machine.state import State, require

#: A guest shuts down within this time, or the plug is pulled.
HALT_TIMEOUT_S = 90.0


def halt(machine: Machine, *, force: bool = False, timeout_s: float = HALT_TIMEOUT_S) -> State:
    """Shuts a box down, cleanly if it will; returns the state before. Raises StateError if there is no such box.

    With `force` a suspended box loses its saved state: its disk stays as it was then.
    """
    with machine.locked():
        record = machine.record()
        provider = providers.of(machine)
        before = state(machine)
        if before is State.SUSPENDED and force:
            provider.drop_suspended()
            machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
        if not before.running:
            if before is not State.SUSPENDED:  # a box that crashed or shut itself down left its scratch space
                provider.tidy()
            return before
        with log.step(f"halting {machine.name}"):
            provider.stop(before, force=force, timeout_s=timeout_s)
        shared.close(machine.folder)  # a guest that lost its network or its plug said no good-bye
        machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
        provider.tidy()
        return before


def suspend(machine: Machine) -> None:
    """Saves the running state into the disk and ends the process."""
    with machine.locked():
        record = machine.record()
        refuse_sealed(machine, "suspend")
        require("suspend", machine.name, state(machine))
        shared.close(machine.folder)  # the guest should know that it is over, too
        with log.step(f"suspending {machine.name}"):
            providers.of(machine).suspend(lambda: machine.write_record(attrs.evolve(record, ended=Ended.SUSPENDED)))


def destroy(machine: Machine) -> bool:
    """Removes a box and everything of it on this host but the empty file of its lock; False if there was none.

    Who waits for the lock holds that file open: without it the next one would lock another file and both would work.
    """
    with machine.locked():
        there = machine.folder.exists()
        shared.close(machine.folder)
        providers.of(machine).destroy()
        remove_tree(machine.unfinished)
    return there
