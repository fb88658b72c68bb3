"""kimbox prune: remove unused images, downloads and the remains of interrupted runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kimbox.cli.output import printable, report
from kimbox.errors import UsageError


def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files that would be removed, and remove nothing.")
    ] = False,
    packages: Annotated[
        bool,
        typer.Option("--packages", help="Also remove the package cache. Builds download the packages again."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a confirmation.")] = False,
) -> None:
    """Remove templates and images that no box was made from, downloads, and remains of interrupted runs. Boxes and
    mirrors are kept. An unfinished download that is removed starts from the beginning at the next attempt.

    The package cache is kept, too, unless --packages is given. With the cache, images can be built without a network.

    \b
    Examples:
      kimbox prune --dry-run
      kimbox prune -y
      kimbox prune --packages
    """
    from kimbox.actions import prune as pruning

    items = pruning.unused(packages=packages)
    lines = [
        f"{item.path}  {item.size_bytes / 1e6:.0f} MB" + (f"  ({printable(item.description)})" * bool(item.description))
        for item in items
    ]
    is_confirmed = bool(items) and not dry_run
    if is_confirmed and not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "prune needs a confirmation, and there is no terminal to prompt on", code="no-terminal", hint="add -y"
            )
        typer.echo("\n".join(lines), err=True)
        is_confirmed = typer.confirm("Remove these files?", err=True)
    if is_confirmed:
        removed = pruning.remove(items)
        lines += [f"kept {item.path}: it is in use now" for item in items if item not in removed]
        items = removed
    size = f"{sum(item.size_bytes for item in items) / 1e6:.0f} MB"
    last = f"removed {size}" if is_confirmed else f"{size} could be removed" if items else "there is nothing to remove"
    unused = [
        {"path": str(item.path), "size_bytes": item.size_bytes, "description": item.description or None}
        for item in items
    ]
    report("prune", {"unused": unused, "removed": is_confirmed}, "\n".join([*lines, last]))
