"""kimbox destroy: remove a box and its disk."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report
from kimbox.errors import KimboxError, StateError, UsageError


def destroy(
    box: target.Name = None,
    file: target.File = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a confirmation.")] = False,
) -> None:
    """Remove a box, its disk and its snapshots. The image is kept, so that the next `kimbox up` does not build it.

    \b
    Examples:
      kimbox destroy
      kimbox destroy openkim-dev -y
    """
    from kimbox.actions import stop

    machine = target.machine(box, file)
    if not machine.folder.exists() and not machine.unfinished.exists():
        raise StateError(
            f"box {machine.name} not found",
            code="box-not-found",
            hint="`kimbox list` shows the boxes",
            fields={"name": machine.name},
        )
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"destroy needs a confirmation to remove {machine.name}, and there is no terminal to prompt on",
                code="no-terminal",
                hint="add -y",
                fields={"name": machine.name},
            )
        if not typer.confirm(f"Remove the box {machine.name} and everything in it?", err=True):
            raise KimboxError(f"{machine.name} was not removed", code="declined", fields={"name": machine.name})
    stop.destroy(machine)
    report("destroy", {"name": machine.name, "state": "absent"}, f"{machine.name} was removed")
