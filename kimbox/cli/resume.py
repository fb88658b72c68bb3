"""kimbox resume: go on from where suspend left off."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def resume(box: target.Name = None, file: target.File = None) -> None:
    """Let a suspended box go on, with its clock set right.

    \b
    Examples:
      kimbox resume
      kimbox resume openkim-dev
    """
    from kimbox.actions import resume as resuming
    from kimbox.actions.observe import state

    machine = target.machine(box, file)
    resuming.resume(machine)
    now = str(state(machine))
    report("resume", {"name": machine.name, "state": now}, f"{machine.name} is {now}")
