"""kimbox doctor: check this host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli.output import report
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.repair import Command
    from kimbox.drivers.hostcheck import HostCheck


def doctor(
    store: Annotated[
        bool, typer.Option("--store", help="Check the images in the store instead: read every disk completely.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Run the commands that fix the faults. Each is shown, and asked for.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="With --fix: run those that kimbox cannot do without, and ask for nothing."),
    ] = False,
) -> None:
    """Check this host: programs, ids for builds, acceleration and free space. Show the command that fixes each fault.

    The exit status is 6 if something that kimbox needs is missing.

    With --fix, run these commands, and then check again. What is advice, and no command, stays for you to do. If a
    command adds this user to a group, log in again.

    With --store, compare the disk of every image with its digest, which kimbox recorded when it stored the image. The
    exit status is that of a damaged image if one differs.

    \b
    Examples:
      kimbox doctor
      kimbox doctor --fix
      kimbox doctor --store
    """
    from kimbox.actions.doctor import examine, examine_store
    from kimbox.actions.repair import perform_all
    from kimbox.errors import ImageError, MissingToolError

    if fix and store:
        raise UsageError("--fix and --store exclude each other", code="usage", hint="--store only reads images")
    checks = examine_store() if store else examine()
    chosen = _confirmed(checks, yes=yes) if fix else []
    failed = perform_all(chosen)
    if chosen:
        checks = examine()
    lines = []
    for check in checks:
        lines.append(f"{check.outcome:5} {check.what}: {check.result}")
        if check.repair:
            lines.append(f"      fix: {check.repair}")
    result = {
        "checks": [{"what": c.what, "verdict": str(c.outcome), "found": c.result, "mend": c.repair} for c in checks]
    }
    if fix:
        result["ran"] = [{"command": str(command), "failed": str(command in failed).lower()} for command in chosen]
        lines.append(f"ran {len(chosen)} commands, {len(failed)} of them failed" if chosen else "no command was run")
    report("doctor", result, "\n".join(lines))
    if any(check.outcome == "bad" for check in checks):
        raise typer.Exit((ImageError if store else MissingToolError).exit_code)


def _confirmed(checks: list[HostCheck], *, yes: bool) -> list[Command]:
    """Returns the commands that the user wants to run."""
    from kimbox.actions.repair import commands
    from kimbox.drivers.hostcheck import Outcome

    needed = commands(checks, Outcome.BAD)
    found = needed if yes else list(dict.fromkeys([*needed, *commands(checks, Outcome.SLOW)]))
    if yes or not found:
        return found
    if not sys.stdin.isatty():
        raise UsageError(
            "--fix needs confirmations, and there is no terminal to prompt on", code="no-terminal", hint="add -y"
        )
    return [command for command in found if typer.confirm(f"Run {command} ?", err=True)]
