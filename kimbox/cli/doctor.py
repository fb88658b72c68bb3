"""kimbox doctor: check this host."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli.output import report


def doctor(
    store: Annotated[
        bool, typer.Option("--store", help="Check the images in the store instead: read every disk completely.")
    ] = False,
) -> None:
    """Check this host: programs, ids for builds, acceleration and free space. Show the command that fixes each fault.

    The exit status is 6 if something that kimbox needs is missing.

    With --store, compare the disk of every image with its digest, which kimbox recorded when it stored the image. The
    exit status is that of a damaged image if one differs.

    \b
    Examples:
      kimbox doctor
      kimbox doctor --store
    """
    from kimbox.actions.doctor import examine, examine_store
    from kimbox.errors import ImageError, MissingToolError

    checks = examine_store() if store else examine()
    lines = []
    for check in checks:
        lines.append(f"{check.outcome:5} {check.what}: {check.result}")
        if check.repair:
            lines.append(f"      fix: {check.repair}")
    result = {
        "checks": [{"what": c.what, "verdict": str(c.outcome), "found": c.result, "mend": c.repair} for c in checks]
    }
    report("doctor", result, "\n".join(lines))
    if any(check.outcome == "bad" for check in checks):
        raise typer.Exit((ImageError if store else MissingToolError).exit_code)
