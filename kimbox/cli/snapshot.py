"""kimbox snapshot: keep a box as it is, and go back to that."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report
from kimbox.errors import UsageError


class Act(StrEnum):
    """What is to be done."""

    SAVE = "save"
    RESTORE = "restore"
    LIST = "list"
    DELETE = "delete"


def snapshot(
    act: Annotated[Act, typer.Argument(metavar="save|restore|list|delete")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [BOX]",
            help="The snapshot (not for list), and the box",
            autocompletion=completers.snapshot_words,
        ),
    ] = None,
    file: target.File = None,
) -> None:
    """Keep a box as it is now, under a name, and go back to that later.

    Of a box that runs the memory is kept too: `restore` lets it go on where it stood, with its clock set right. A
    halted box is halted again. Snapshots lie in the box's disk, and go with it. They are the whole box, /persistent
    too: the new root of a resnap boot is another thing, and needs none.

    \b
    Examples:
      kimbox snapshot save before-upgrade
      kimbox snapshot restore before-upgrade openkim-dev
      kimbox snapshot list --json
      kimbox snapshot delete before-upgrade
    """
    from kimbox.actions import snapshot as snapshots

    rest = list(words or [])
    name = snapshots.check_name(rest.pop(0)) if act is not Act.LIST and rest else ""
    if len(rest) > 1 or (act is not Act.LIST and not name):
        raise UsageError(f"snapshot {act} takes " + ("a box" if act is Act.LIST else "a name, and maybe a box"))
    machine = target.machine(rest[0] if rest else None, file)
    if act is Act.LIST:
        found = snapshots.names(machine)
        text = "\n".join(found) or f"{machine.name} has no snapshots"
        report("snapshot", {"name": machine.name, "snapshots": found}, text)
        return
    result = {"name": machine.name, "snapshot": name}
    if act is Act.DELETE:
        snapshots.delete(machine, name)
        report("snapshot", result, f"{name} of {machine.name} is gone")
        return
    state = (snapshots.save if act is Act.SAVE else snapshots.restore)(machine, name)
    did = "is kept as" if act is Act.SAVE else "has gone back to"
    report("snapshot", result | {"state": str(state)}, f"{machine.name} {did} {name}; it is {state}")
