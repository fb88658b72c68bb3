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

    items = pruning.unused(packages=packages)
    lines = [f"{item.path}  {item.size_bytes / 1e6:.0f} MB" for item in items]
    is_confirmed = bool(items) and not dry_run
    if is_confirmed and not yes:
        if not sys.stdin.isatty():
            raise UsageError("prune asks before it removes something, and there is no terminal", hint="add -y")
        typer.echo("\n".join(lines), err=True)
        is_confirmed = typer.confirm("Remove these?", err=True)
    if is_confirmed:
        removed = pruning.remove(items)
        lines += [f"{item.path} stays: it is in use now" for item in items if item not in removed]
        items = removed
    total = f"{sum(item.size_bytes for item in items) / 1e6:.0f} MB"
    end = f"removed {total}" if is_confirmed else f"{total} could be removed" if items else "there is nothing to remove"
    unused = [{"path": str(item.path), "size_bytes": item.size_bytes} for item in items]
    report("prune", {"unused": unused, "removed": is_confirmed}, "\n".join([*lines, end]))
