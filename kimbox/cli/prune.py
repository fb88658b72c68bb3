"""kimbox prune: give space back."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kimbox.cli.output import report
from kimbox.errors import UsageError


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    packages: Annotated[
        bool, typer.Option("--packages", help="Also the cache of packages, which are fetched again when needed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove images that no box was made from, and what interrupted work left behind. Boxes and mirrors stay.

    The cache of packages stays, too, unless --packages is given: with it, images are built without a network.

    \b
    Examples:
      kimbox prune --dry-run
      kimbox prune -y
      kimbox prune --packages
    """
    from kimbox.actions import prune as pruning

    found = pruning.unused(packages=packages)
    lines = [f"{item.path}  {item.size_bytes / 1e6:.0f} MB" for item in found]
    removed = bool(found) and not dry_run
    if removed and not yes:
        if not sys.stdin.isatty():
            raise UsageError("prune asks before it removes something, and there is no terminal", hint="add -y")
        typer.echo("\n".join(lines), err=True)
        removed = typer.confirm("Remove these?", err=True)
    if removed:
        gone = pruning.remove(found)
        lines += [f"{item.path} stays: it is in use now" for item in found if item not in gone]
        found = gone
    items = [{"path": str(item.path), "size_bytes": item.size_bytes} for item in found]
    total = f"{sum(item.size_bytes for item in found) / 1e6:.0f} MB"
    end = f"removed {total}" if removed else f"{total} could be removed" if found else "there is nothing to remove"
    report("prune", {"unused": items, "removed": removed}, "\n".join([*lines, end]))
