"""kimbox resume: continues a suspended or paused box. Needs no spec."""

from __future__ import annotations

from kimbox.actions.lifecycle.start import repair_record, wake
from kimbox.actions.observe import state
from kimbox.log import log
from kimbox.machine import forwarding
from kimbox.machine.folder import Machine
from kimbox.machine.state import require


def resume(machine: Machine) -> None:
    """Continues a suspended or paused box and sets the guest's clock. Raises StateError if it is in another state."""
    with machine.locked():
        before = state(machine)
        require("resume", machine.name, before)
        repair_record(machine, before)
        with log.step(f"resuming {machine.name}"):
            wake(machine, before)
        forwarding.ensure(machine, machine.record())
