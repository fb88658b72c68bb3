"""The ends of a machine's run, and of a machine: halt, suspend, destroy. Needs neither spec nor image nor ssh."""

from __future__ import annotations

import attrs

from kimbox.errors import KimboxError
from kimbox.files import remove_tree
from kimbox.log import log
from kimbox.machine import qemu
from kimbox.machine.facts import state
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
        before = state(machine)
        if before is State.SUSPENDED and force:
            qemu.drop_suspended(machine)
            machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
        if not before.running:
            if before is not State.SUSPENDED:  # a box that crashed or shut itself down left its scratch space
                qemu.drop_scratch(machine)
            return before
        with log.step(f"halting {machine.name}"):
            if force or not _shut_down(machine, before, timeout_s):
                qemu.kill(machine)
        machine.write_record(attrs.evolve(record, ended=Ended.HALTED))
        qemu.sweep(machine)
        qemu.drop_scratch(machine)
        return before


def _shut_down(machine: Machine, before: State, timeout_s: float) -> bool:
    """Presses the power button; True if the box is gone in time."""
    try:
        if before is State.PAUSED:
            qemu.unpause(machine)
        if qemu.power_off(machine, timeout_s):
            return True
        log.warn(f"{machine.name} did not shut down within {timeout_s:.0f} s: pulling the plug")
    except KimboxError as error:
        log.warn(f"{machine.name} cannot be asked to shut down ({error}): pulling the plug")
    return False


def suspend(machine: Machine) -> None:
    """Saves the running state into the disk and ends the process."""
    with machine.locked():
        record = machine.record()
        require("suspend", machine.name, state(machine))
        with log.step(f"suspending {machine.name}"):
            qemu.suspend(machine)
            machine.write_record(
                attrs.evolve(record, ended=Ended.SUSPENDED)
            )  # before the end: it must not be forgotten
            qemu.kill(machine)
        qemu.sweep(machine)


def destroy(machine: Machine) -> bool:
    """Removes a box and everything of it on this host but the empty file of its lock; False if there was none.

    Who waits for the lock holds that file open: without it the next one would lock another file and both would work.
    """
    with machine.locked():
        there = machine.folder.exists()
        if machine.running:
            qemu.kill(machine)
        qemu.remove(machine)
        remove_tree(machine.unfinished)
    return there
