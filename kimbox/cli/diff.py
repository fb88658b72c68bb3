"""kimbox diff: the differences between two locks, or between a lock and a box."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import printable, report

if TYPE_CHECKING:
    from kimbox.actions.diff import Compared

Old = Annotated[
    str | None,
    typer.Argument(
        metavar="[OLD]",
        help="A lock, REV:PATH or a box. Default: the box of this folder.",
        autocompletion=completers.boxes_or_locks,
    ),
]
New = Annotated[
    str | None,
    typer.Argument(
        metavar="[NEW]",
        help="A lock, REV:PATH or a box. Default: the lock of this folder.",
        autocompletion=completers.boxes_or_locks,
    ),
]


def diff(
    old: Old = None,
    new: New = None,
    file: target.File = None,
) -> None:
    """Show the differences from OLD to NEW: the spec, the image, the repositories that were added, removed or moved,
    and the commits between.

    OLD and NEW are each a lock file, a lock in the git repository of this folder (REV:PATH), or the name of a box. A
    box stands for the lock that it runs. Without OLD and NEW, the output is what `kimbox up` would change in the box,
    and what `kimbox reload` would: cpus, memory, forwards and scratch (`shape` in the JSON).

    If a box answers, the output also has the packages that were installed, removed or updated in it since (`installed`
    in the JSON). Steps that ran under other commits than those of the lock are shown, too (`stale` in the JSON), and
    count as a difference.

    Commits are read from the mirrors on this host: + marks an added commit, - a removed one, at most 40 for each
    repository. The exit status is 0 in both cases; with --json, `differs` is true or false.

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
    compared = compare.compare(*sides)
    package_lines = [
        f"{side.name}, changed since its lock: {line}"
        for side in sides
        if side.installed
        for line in side.installed.lines()
    ]
    lines = as_text(compared.diff, compared.logs)
    lines += [
        f"{side.name}, ran under other commits: {words(step.as_json())}" for side in sides for step in side.stale or ()
    ]
    lines += [f"{compared.old.name}: {change.text} (`kimbox reload` applies it)" for change in compared.shape]
    lines = lines or [f"{compared.old.name} and {compared.new.name} are equal"]
    report(
        "diff",
        _result(compared) | as_json(compared.diff, compared.logs),
        "\n".join(map(printable, [*lines, *package_lines])),
    )


def _result(compared: Compared) -> dict[str, Any]:
    """What the JSON has beside the differences of the locks."""
    both = {"old": compared.old, "new": compared.new}
    return {
        "old": compared.old.name,
        "new": compared.new.name,
        "differs": compared.differs,
        "shape": {change.name: {"old": change.old, "new": change.new} for change in compared.shape},
        "installed": {
            which: None if side.installed is None else side.installed.as_json() for which, side in both.items()
        },
        "stale": {
            which: None if side.stale is None else [step.as_json() for step in side.stale]
            for which, side in both.items()
        },
    }
