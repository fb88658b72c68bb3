"""kimbox shrink: reduce the disk of a halted box to the space in use."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report
from kimbox.errors import KimboxError


def shrink(
    box: target.Name = None,
    file: target.File = None,
    resnap: Annotated[
        bool, typer.Option("--resnap", help="Discard the content of the root's snapshot, as a resnap boot does.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the size that the disk would have, and change nothing.")
    ] = False,
) -> None:
    """Reduce the disk of a halted box to the space in use.

    kimbox copies the blocks that are in use to a new disk, which then replaces the old one in one step. It does not
    write to the old disk, and no guest runs. Free space of file systems and of the volume group, swapped pages and
    journals without pending transactions are not copied.

    The changes of a box that boots with `keep` are kept. If spec and disk both say that the next boot is `resnap`,
    which creates a new snapshot, the content of the snapshot is discarded. --resnap discards it in any case.

    If a file system was not unmounted, kimbox copies all of it. A damaged disk is an error, and stays unchanged.

    The JSON has: name, before_bytes and after_bytes (the space that the disk takes on this host), snapshot (kept or
    dropped), notes (what was copied as a whole, and why) and dry_run.

    \b
    Examples:
      kimbox halt && kimbox shrink
      kimbox shrink openkim-dev --dry-run
    """
    from kimbox.actions import shrink as shrinking
    from kimbox.files import size_words

    machine, boot = target.machine(box, file), None
    if machine.exists:
        with contextlib.suppress(KimboxError):  # without a spec, the content of the snapshot is kept
            boot = target.project(box, file, settings=target.RECORDED).box.boot
    shrunk = shrinking.shrink(machine, boot, drop=resnap, dry_run=dry_run)
    result = {
        "name": machine.name,
        "before_bytes": shrunk.before_bytes,
        "after_bytes": shrunk.after_bytes,
        "snapshot": "dropped" if shrunk.dropped else "kept",
        "notes": list(shrunk.notes),
        "dry_run": dry_run,
    }
    verb = "would take" if dry_run else "takes"
    before, after = size_words(shrunk.before_bytes), size_words(shrunk.after_bytes)
    text = f"the disk of {machine.name} took {before}, and {verb} {after}"
    report("shrink", result, "\n".join(map(printable, [*shrunk.notes, text])))
