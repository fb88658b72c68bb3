"""kimbox provision: make a running box what its spec says, again, or a part of it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kimbox.cli import target
from kimbox.cli.output import report, settings
from kimbox.cli.status import stale_lines, summary_of, unusual_lines
from kimbox.errors import UsageError


def provision(
    box: target.Name = None,
    file: target.File = None,
    repo: Annotated[
        list[str] | None,
        typer.Option("--repo", metavar="NAME=FOLDER|NAME@REF", help="Run this in place of the locked one; repeat it."),
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STEP", help="Run this step alone.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="STEP", help="Run this step and what follows.")] = None,
) -> None:
    """Send a running box its manifest again and run what has not been done: after a failure, or a change of the spec.

    Where the box has gone back to its last good manifest, this tries the one that failed once more.

    --repo takes a working copy as it lies there, a git work tree with what is not committed, or another branch, tag or
    commit of the same URL. The lock is neither used for it nor changed. The box is unpinned until the next `kimbox up`
    or `provision` without --repo; `kimbox status` and /etc/kimbox/box.json say so. If it fails, the next boot goes back
    to the last good manifest.

    --only and --from name a step of the spec, or `setup`. It runs even if it was done. Repositories are brought to
    their commits first; nothing else runs, and the manifest counts neither as done nor as failed: the next boot, or
    `kimbox up`, runs what was left out.

    \b
    Examples:
      kimbox provision
      kimbox provision openkim-dev
      kimbox provision --repo setup=./work --only setup
      kimbox provision --repo setup@try-this
      kimbox provision --from python-packages
    """
    from kimbox.actions import provision as provisioning
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.guest.delivery import Part
    from kimbox.machine.folder import machine_of
    from kimbox.project.unpinned import Replacement

    if only is not None and start is not None:
        raise UsageError("--only and --from exclude each other", hint="give one of them")
    how: Literal["only", "from"] = "only" if only is not None else "from"
    step = only if only is not None else start
    replacements = tuple(Replacement.parse(argument) for argument in repo or [])
    project = target.project(box, file)
    part = Part(how, step) if step is not None else None
    limit = settings.timeout_s or BOOT_TIMEOUT_S
    provisioning.provision(project, replacements=replacements, part=part, timeout_s=limit)
    summary = summary_of(machine_of(project.name))
    lines = [f"{project.name} is {summary['state']}", *unusual_lines(summary["provenance"]), *stale_lines(summary)]
    report("provision", summary, "\n".join(lines))
