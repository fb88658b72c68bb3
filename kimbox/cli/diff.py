"""kimbox diff: what two locks, or a lock and a box, differ in."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import printable, report

Old = Annotated[
    str | None,
    typer.Argument(
        metavar="[OLD]", help="Default: what the box of this folder runs", autocompletion=completers.boxes_or_locks
    ),
]
New = Annotated[
    str | None,
    typer.Argument(
        metavar="[NEW]", help="Default: the lock of this folder's spec", autocompletion=completers.boxes_or_locks
    ),
]


def diff(
    old: Old = None,
    new: New = None,
    file: target.File = None,
) -> None:
    """Show what differs from OLD to NEW: spec, image, repositories added, removed or moved, and the commits between.

    OLD and NEW are each a lock file, REV:PATH of the git repository around, or the name of a box, which stands for the
    lock that it runs; of one that answers, packages that were installed, removed or moved in it since are told besides
    (`installed` in the JSON). Steps that ran under other commits than those of that lock are named, too (`stale`), and
    count as a difference. Without them it is what `kimbox up` would change in the box. Commits are read from this
    machine's mirrors, + for those that came and - for those that went away, forty for a repository at most. The exit
    status is 0 whether they differ or not; with --json, `differs` tells.

    \b
    Examples:
      kimbox diff
      kimbox diff HEAD~1:kimbox.lock kimbox.lock
      kimbox diff openkim-dev other/kimbox.lock
    """
    from kimbox.actions import diff as compare
    from kimbox.guest.stale import words
    from kimbox.lock.diff import as_json, as_text
    from kimbox.machine.folder import machine_of

    def of_this_folder(which: str) -> compare.Side:
        project = target.project(None, file)
        if which == "old":
            return compare.of_box(machine_of(project.name))
        return compare.of_spec(project)

    sides = [compare.named(word) if word else of_this_folder(which) for which, word in (("old", old), ("new", new))]
    found = compare.compare(*sides)
    own = [f"{side.name}, by itself: {line}" for side in sides if side.installed for line in side.installed.lines()]
    lines = as_text(found.diff, found.logs)
    lines += [
        f"{side.name}, made under other commits: {words(step.as_json())}" for side in sides for step in side.stale or ()
    ]
    lines = lines or [f"{found.old.name} and {found.new.name} are equal"]
    told = {"old": found.old.installed, "new": found.new.installed}
    installed = {which: changes.as_json() if changes is not None else None for which, changes in told.items()}
    outdated = {
        which: None if side.stale is None else [step.as_json() for step in side.stale]
        for which, side in (("old", found.old), ("new", found.new))
    }
    result = {
        "old": found.old.name, "new": found.new.name, "differs": found.differs, "installed": installed,
        "stale": outdated,
    }  # fmt: skip
    report("diff", result | as_json(found.diff, found.logs), "\n".join(map(printable, [*lines, *own])))
