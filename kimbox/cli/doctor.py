"""kimbox doctor: check this host."""

from __future__ import annotations

import typer

from kimbox.cli.output import report


def doctor() -> None:
    """Check this host: programs, ids for builds, acceleration and free space. Show the command that fixes each fault.

    The exit status is 6 if something that kimbox needs is missing.

    \b
    Examples:
      kimbox doctor
    """
    from kimbox.actions.doctor import examine
    from kimbox.errors import MissingToolError

    checks = examine()
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
        raise typer.Exit(MissingToolError.exit_code)
