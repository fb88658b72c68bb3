"""kimbox resume: continue a suspended box."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def resume(box: target.Name = None, file: target.File = None) -> None:
    """Continue a suspended box. kimbox sets the clock of the guest.

    \b
    Examples:
      kimbox resume
      kimbox resume openkim-dev
    """
    from kimbox.actions import resume as resuming
    from kimbox.actions.observe import state

    machine = target.machine(box, file)
    resuming.resume(machine)
    new_state = str(state(machine))
    report("resume", {"name": machine.name, "state": new_state}, f"{machine.name} is {new_state}")
