"""kimbox lock: make the lock of a box, check it, or move its pins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.project.project import Project


def lock(
    box: target.Name = None,
    file: target.File = None,
    update: Annotated[
        list[str] | None,
        typer.Option("--update", metavar="NAME", help="Move this repository or package, or all `packages`; repeat it."),
    ] = None,
    update_all: Annotated[bool, typer.Option("--update-all", help="Move all repositories and packages.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the lock: exit status 3 if it does not stand.")
    ] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="With --check: ask the servers too, what became of refs and commits.")
    ] = False,
) -> None:
    """Write kimbox.lock beside the spec: each repository at one commit, each package of the image at one version.

    What is in the lock stays where it is unless told to move. Where the spec asks for more packages, those that are
    there keep their versions, as long as the archives have them.

    --check writes nothing and asks no server. It fails where `kimbox lock` would change the file: spec, repositories,
    image or a folder have changed. With --remote it also fails where a locked commit is nowhere to be had, and tells of
    tags that were moved, branches that were force-pushed, and newer commits.

    \b
    Examples:
      kimbox lock
      kimbox lock --update kim-api
      kimbox lock --update packages
      kimbox lock --update-all --dry-run
      kimbox lock --check
    """
    if check and (update or update_all or dry_run):
        raise UsageError("--check changes nothing, and --update, --update-all and --dry-run are about changes")
    if remote and not check:
        raise UsageError("--remote belongs to --check", hint="write --check --remote")
    project = target.project(box, file)
    if check:
        _check(project, remote)
    else:
        _lock(project, None if update_all else update or [], dry_run)


def _check(project: Project, remote: bool) -> None:
    from kimbox.project.check import verify_lock

    path, notes = verify_lock(project, remote=remote)
    text = "\n".join([*(f"note: {printable(note)}" for note in notes), f"{path} stands"])
    report("lock", {"file": str(path), "stands": True, "notes": notes}, text)


def _lock(project: Project, update: list[str] | None, dry_run: bool) -> None:
    from kimbox.actions import diff as compare
    from kimbox.lock.diff import as_json, as_text
    from kimbox.log import log
    from kimbox.project import pins

    done = pins.relock(project, update=update, dry_run=dry_run)
    for warning in done.warnings:
        log.warn(printable(warning))
    logs = compare.logs(done.diff) if done.diff else {}
    if done.diff:
        lines = as_text(done.diff, logs)
    else:
        lines = [f"{name}: {old or 'new'} -> {new}" for name, (old, new) in done.moved.items()]
        lines += [f"{done.packages} packages"] if done.packages else []
    outcome = "would write" if dry_run else "wrote"
    lines.append(f"{outcome} {done.path}" if done.is_written else f"{done.path} is up to date")
    changes = {name: {"old": old, "new": new} for name, (old, new) in done.moved.items()}
    result = {
        "file": str(done.path), "written": done.is_written and not dry_run, "moved": changes, "removed": done.removed,
        "dry_run": dry_run, "warnings": done.warnings, "diff": as_json(done.diff, logs) if done.diff else None,
    }  # fmt: skip
    report("lock", result, "\n".join(map(printable, lines)))
