"""kimbox suspend: save a running box, memory included, and stop it."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def suspend(box: target.Name = None, file: target.File = None) -> None:
    """Save a running box, memory included, to its disk and stop it. `kimbox resume` continues it.

    \b
    Examples:
      kimbox suspend
      kimbox suspend openkim-dev
    """
    from kimbox.actions import service, stop
    from kimbox.actions.observe import state

    machine = target.machine(box, file)
    stop.suspend(machine)
    service.rest(machine)
    report("suspend", {"name": machine.name, "state": str(state(machine))}, f"{machine.name} is suspended")
