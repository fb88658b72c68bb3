"""kimbox destroy: remove a box."""

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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a box and all it has changed. Its image stays, so that the next `kimbox up` is quick.

    \b
    Examples:
      kimbox destroy
      kimbox destroy openkim-dev -y
    """
    from kimbox.actions import stop

    machine = target.machine(box, file)
    if not machine.folder.exists() and not machine.unfinished.exists():
        raise StateError(f"there is no box {machine.name}", hint="`kimbox list` shows which there are")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"destroy asks before it removes {machine.name}, and there is no terminal", hint="add -y")
        if not typer.confirm(f"Remove the box {machine.name} and everything in it?", err=True):
            raise KimboxError(f"{machine.name} stays as it is")
    stop.destroy(machine)
    report("destroy", {"name": machine.name, "state": "absent"}, f"{machine.name} is gone")
