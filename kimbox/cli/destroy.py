"""kimbox destroy: remove a box and its disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kimbox.cli import several, target
from kimbox.cli.output import report
from kimbox.errors import KimboxError, StateError, UsageError

if TYPE_CHECKING:
    from kimbox.spec.members import Member


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
    if found := target.several(box, file):
        _destroy_all(*found, yes=yes)
        return
    from kimbox.actions import service, stop

    machine = target.machine(box, file)
    if not machine.folder.exists() and not machine.unfinished.exists():
        raise StateError(
            f"box {machine.name} not found",
            code="box-not-found",
            hint="`kimbox list` shows the boxes",
            fields={"name": machine.name},
        )
    if not yes:
        _confirm(machine.name)
    service.remove(machine.name)
    stop.destroy(machine)
    report("destroy", {"name": machine.name, "state": "absent"}, f"{machine.name} was removed")


def _confirm(names: str) -> None:
    """Asks whether boxes are to be removed. Raises UsageError without a terminal, KimboxError for `no`."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"destroy needs a confirmation to remove {names}, and there is no terminal to prompt on",
            code="no-terminal",
            hint="add -y",
            fields={"name": names},
        )
    if not typer.confirm(f"Remove {names} and everything in it?", err=True):
        raise KimboxError(f"{names} was not removed", code="declined", fields={"name": names})


def _destroy_all(spec: Path, members: Sequence[Member], *, yes: bool) -> None:
    """Removes the machines of a spec with several boxes. Raises StateError if it has none."""
    from kimbox.machine.folder import Machine

    made = [m for m in members if Machine(m.name).folder.exists() or Machine(m.name).unfinished.exists()]
    names = {member.name for member in made}
    if not made:
        raise StateError(
            f"none of the boxes of {spec} exists", code="box-not-found", hint="`kimbox list` shows the boxes"
        )
    if not yes:
        _confirm(", ".join(names))
    left = [attrs.evolve(member, needs=tuple(need for need in member.needs if need in names)) for member in made]
    several.run("destroy", spec, left, {"--yes": True}, is_last_first=True)
