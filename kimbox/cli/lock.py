"""kimbox lock: make the lock of a box, or move its pins."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report


def lock(
    box: target.Name = None,
    file: target.File = None,
    update: Annotated[
        list[str] | None, typer.Option("--update", metavar="NAME", help="Move the pin of this repository; repeat it.")
    ] = None,
    update_all: Annotated[bool, typer.Option("--update-all", help="Move the pins of all repositories.")] = False,
) -> None:
    """Write kimbox.lock beside the spec: each repository at one commit. Pins stay where they are unless told to move.

    \b
    Examples:
      kimbox lock
      kimbox lock --update kim-api
      kimbox lock --update-all
    """
    from kimbox.machine import pins

    spec, shipped = target.spec(box, file)
    done = pins.relock(spec, shipped=shipped is not None, update=None if update_all else update or [])
    lines = [f"{name}: {old or 'new'} -> {new}" for name, (old, new) in done.moved.items()]
    lines += [f"{name}: removed" for name in done.removed]
    lines.append(f"wrote {done.path}" if done.is_written else f"{done.path} is up to date")
    changes = {name: {"old": old, "new": new} for name, (old, new) in done.moved.items()}
    result = {"file": str(done.path), "written": done.is_written, "moved": changes, "removed": done.removed}
    report("lock", result, "\n".join(lines))
