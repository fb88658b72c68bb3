"""kimbox provision: provision a running box again, as a whole or in part."""

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
        typer.Option(
            "--repo",
            metavar="NAME=FOLDER|NAME@REF",
            help="Use this folder or ref of a repository in place of its locked commit. May be repeated.",
        ),
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STEP", help="Run only this step.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Run this step and all steps after it.")
    ] = None,
) -> None:
    """Provision a running box again after a change of the spec or a failure. kimbox sends the manifest, and the box
    runs the steps that are not done.

    If the box returned to its last good manifest, this command attempts the manifest that failed once more.

    --repo takes a folder as it is (also a git work tree with changes that are not committed), or another branch, tag or
    commit of the same URL. kimbox does not use the lock for this repository, and does not change the lock. The box is
    unpinned until the next `kimbox up` or `provision` without --repo; `kimbox status` and /etc/kimbox/box.json show
    this. If it fails, the next boot returns to the last good manifest.

    --only and --from take the name of a step of the spec, or `setup`. The step runs even if it is done. First the box
    checks out the repositories at their commits; nothing else runs. The manifest then counts neither as done nor as
    failed: the next boot, or `kimbox up`, runs the steps that were left out.

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
        raise UsageError("--only and --from exclude each other", code="usage", hint="pass one of them")
    mode: Literal["only", "from"] = "only" if only is not None else "from"
    step = only if only is not None else start
    replacements = tuple(Replacement.parse(argument) for argument in repo or [])
    project = target.project(box, file, settings=target.RECORDED)
    part = Part(mode, step) if step is not None else None
    limit = settings.timeout_s or BOOT_TIMEOUT_S
    provisioning.provision(project, replacements=replacements, part=part, timeout_s=limit)
    summary = summary_of(machine_of(project.name))
    lines = [f"{project.name} is {summary['state']}", *unusual_lines(summary["provenance"]), *stale_lines(summary)]
    report("provision", summary, "\n".join(lines))
