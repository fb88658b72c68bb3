"""kimbox halt: shut a box down."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import several, target
from kimbox.cli.output import report, settings


def halt(
    box: target.Name = None,
    file: target.File = None,
    force: Annotated[
        bool, typer.Option("--force", help="Stop the machine immediately, without a shutdown of the guest.")
    ] = False,
) -> None:
    """Shut a box down. If the guest has not shut down at the end of the timeout, stop the machine. The disk is kept.

    Of a spec with several boxes, all are shut down, each after those that need it.

    A suspended box is refused. With --force, its saved memory is discarded, and the box is halted.

    \b
    Examples:
      kimbox halt
      kimbox halt openkim-dev --force
    """
    if found := target.several(box, file):
        several.run("halt", *found, {"--force": force}, is_last_first=True)
        return
    from kimbox.actions import service, stop
    from kimbox.actions.observe import state
    from kimbox.machine.state import State

    machine = target.machine(box, file)
    before = stop.halt(machine, force=force, timeout_s=settings.timeout_s or stop.HALT_TIMEOUT_S)
    service.rest(machine)
    after = state(machine)
    text = f"{machine.name} is {after}" + (", as it was" if after is before else "")
    if after is State.CRASHED:
        text += f". Its disk was not unmounted: `kimbox up {machine.name}` repairs it, then halt the box"
    report("halt", {"name": machine.name, "state": str(after), "before": str(before)}, text)
