"""kimbox cp: copy files and folders to and from a box."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report
from kimbox.errors import UsageError


def cp(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SRC... DST", help="Paths. BOX:PATH is in a box, :PATH in that of the current folder."),
    ],
    file: target.File = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", hidden=True, help="Folders are always copied with their content.")
    ] = False,
) -> None:
    """Copy files and folders to a box or from a box, as its user `vagrant`.

    As with cp(1): if DST is a folder, everything goes into it; else the one SRC gets that name. Folders are copied with
    their content, permissions and times. A path that is not absolute starts in the home folder of that user. Wildcards
    in BOX:PATH are those of the box: quote them.

    If this host and the box have rsync(1), it copies only what is different, and continues after an interruption.
    Without it, scp(1) copies, and follows symbolic links. From a box, set-uid bits and links that lead out of the
    copied folder are left out. Write ./NAME for a file of this host whose name has a colon.

    \b
    Examples:
      kimbox cp model.py data openkim-dev:
      kimbox cp openkim-dev:run.log .
      kimbox cp 'openkim-dev:/tmp/*.png' plots/
      kimbox cp -f spec.yaml input :/staging
    """
    from kimbox.actions import copy

    *sources, last = words
    if not sources:
        raise UsageError("cp requires a source and a target", code="usage", hint="kimbox cp SRC... DST")
    places = [_place(word) for word in words]
    boxes = [place for place in places[:-1] if place[0] is not None]
    if (places[-1][0] is None) == (len(boxes) != len(sources)) or (boxes and len({box for box, _ in boxes}) > 1):
        raise UsageError(
            "cp copies from this host to one box, or from one box to this host",
            code="usage",
            hint="write BOX:PATH for each path in the box; between two boxes, copy to this host first",
        )
    box = places[-1][0] if places[-1][0] is not None else boxes[0][0]
    machine = target.machine(box or None, file)
    if boxes:
        done = copy.copy_out(machine, [path for _, path in boxes], last)
    else:
        done = copy.copy_in(machine, sources, places[-1][1])
    names = [item.path for item in done.items]
    text = f"copied {names[0] if len(names) == 1 else f'{len(names)} files and folders'} to {last}"
    result = {"name": machine.name, "copied": names, "target": last, "program": done.program}
    report("cp", result, text)


def _place(word: str) -> tuple[str | None, str]:
    """Returns box and path of a word. The box is None for a path of this host, and empty for the box of this folder."""
    box, colon, path = word.partition(":")
    return (box, path) if colon and "/" not in box else (None, word)
