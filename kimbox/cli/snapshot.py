"""kimbox snapshot: save, restore, list and delete snapshots of a box."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report
from kimbox.errors import UsageError


class Act(StrEnum):
    """What `kimbox snapshot` does."""

    SAVE = "save"
    RESTORE = "restore"
    LIST = "list"
    DELETE = "delete"


def snapshot(
    act: Annotated[Act, typer.Argument(metavar="save|restore|list|delete", help="What to do with snapshots.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [BOX]",
            help="Name of the snapshot (not for list), and name of the box. Default: the box of this folder.",
            autocompletion=completers.snapshot_words,
        ),
    ] = None,
    file: target.File = None,
) -> None:
    """Save, restore, list and delete snapshots of a box.

    A snapshot of a running box includes its memory: `restore` continues the box from that point and sets its clock. A
    snapshot of a halted box restores a halted box. Snapshots are in the box's disk, and are removed with it. A snapshot
    is the whole disk, with /persistent. The new root of a resnap boot is an LVM snapshot in the guest, which does not
    need this command.

    `kimbox up --rebuild` makes the snapshot `former`: the disk before. To restore it exchanges the two disks. The box
    is halted then.

    \b
    Examples:
      kimbox snapshot save before-upgrade
      kimbox snapshot restore before-upgrade openkim-dev
      kimbox snapshot list --json
      kimbox snapshot delete before-upgrade
    """
    from kimbox.actions import snapshot as snapshots

    box_words = list(words or [])
    name = snapshots.check_name(box_words.pop(0)) if act is not Act.LIST and box_words else ""
    if len(box_words) > 1 or (act is not Act.LIST and not name):
        usage = "[BOX]" if act is Act.LIST else "NAME [BOX]"
        raise UsageError(
            f"wrong arguments of `kimbox snapshot {act}`", code="usage", hint=f"kimbox snapshot {act} {usage}"
        )
    machine = target.machine(box_words[0] if box_words else None, file)
    if act is Act.LIST:
        names = snapshots.names(machine)
        text = "\n".join(names) or f"{machine.name} has no snapshots"
        report("snapshot", {"name": machine.name, "snapshots": names}, text)
        return
    result = {"name": machine.name, "snapshot": name}
    if act is Act.DELETE:
        snapshots.delete(machine, name)
        report("snapshot", result, f"deleted the snapshot {name} of {machine.name}")
        return
    state = (snapshots.save if act is Act.SAVE else snapshots.restore)(machine, name)
    done = f"saved {machine.name} as" if act is Act.SAVE else f"restored {machine.name} from"
    report("snapshot", result | {"state": str(state)}, f"{done} {name}; {machine.name} is {state}")
