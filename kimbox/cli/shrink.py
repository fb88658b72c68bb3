"""kimbox shrink: bring a box to its true size."""

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
        bool, typer.Option("--resnap", help="Throw away what is in the root's snapshot, as a resnap boot does.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would give, and change nothing.")] = False,
) -> None:
    """Bring the disk of a halted box to the size of what is in it.

    Free space of its file systems and of the volume group, swapped pages and idle journals are dropped. Nothing is
    written over the disk, and no guest runs: all that is in use is copied, and takes the disk's place in one step.
    What a box booted with `keep` has changed is kept. Where spec and disk both say that the next boot is `resnap`,
    which makes the snapshot anew, its content goes; --resnap lets it go in any case.

    A file system that was not unmounted is kept whole. A damaged disk is refused, and left as it is.

    In its JSON: name, before_bytes and after_bytes (what the disk takes on this host), snapshot (kept or dropped),
    notes (what was kept whole, and why) and dry_run.

    \b
    Examples:
      kimbox halt && kimbox shrink
      kimbox shrink openkim-dev --dry-run
    """
    from kimbox.actions import shrink as shrinking
    from kimbox.files import size_words

    machine, boot = target.machine(box, file), None
    if machine.exists:
        with contextlib.suppress(KimboxError):  # without its spec the box keeps its snapshot
            boot = target.project(box, file).box.boot
    done = shrinking.shrink(machine, boot, drop=resnap, dry_run=dry_run)
    result = {
        "name": machine.name,
        "before_bytes": done.before_bytes,
        "after_bytes": done.after_bytes,
        "snapshot": "dropped" if done.dropped else "kept",
        "notes": list(done.notes),
        "dry_run": dry_run,
    }
    would = "would take" if dry_run else "takes"
    words = (
        f"the disk of {machine.name} took {size_words(done.before_bytes)}, and {would} {size_words(done.after_bytes)}"
    )
    report("shrink", result, "\n".join(map(printable, [*done.notes, words])))
