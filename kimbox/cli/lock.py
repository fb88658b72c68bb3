"""kimbox lock: write the lock of a box, check it, or update its pins."""

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
        typer.Option(
            "--update",
            metavar="NAME",
            help="Update the pin of this repository or package, or of all `packages`. May be repeated.",
        ),
    ] = None,
    update_all: Annotated[
        bool, typer.Option("--update-all", help="Update the pins of all repositories and packages.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes, and write nothing.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the lock and write nothing. Exit status 3 if the lock does not match the spec."
        ),
    ] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="With --check: also check refs and commits on their servers.")
    ] = False,
) -> None:
    """Write kimbox.lock beside the spec: each repository at one commit, each package of the image at one version.

    Pins that are in the lock stay, unless an option updates them. If the spec names more packages than before, the
    packages in the lock keep their versions as long as the archives have these.

    --check writes nothing and contacts no server. The exit status is 3 if `kimbox lock` would change the file, because
    the spec, a repository, the image or a folder has changed. With --remote, the exit status is also 3 if a locked
    commit is not available anywhere. --remote also reports moved tags, force-pushed branches and newer commits.

    \b
    Examples:
      kimbox lock
      kimbox lock --update kim-api
      kimbox lock --update packages
      kimbox lock --update-all --dry-run
      kimbox lock --check
    """
    if check and (update or update_all or dry_run):
        raise UsageError("--check excludes --update, --update-all and --dry-run", code="usage")
    if remote and not check:
        raise UsageError("--remote requires --check", code="usage", hint="write --check --remote")
    project = target.project(box, file)
    if check:
        _check(project, remote)
    else:
        _lock(project, None if update_all else update or [], dry_run)


def _check(project: Project, remote: bool) -> None:
    from kimbox.project.check import verify_lock

    path, notes = verify_lock(project, remote=remote)
    text = "\n".join([*(f"note: {printable(note)}" for note in notes), f"{path} matches its spec"])
    report("lock", {"file": str(path), "stands": True, "notes": notes}, text)


def _lock(project: Project, update: list[str] | None, dry_run: bool) -> None:
    from kimbox.actions import diff as compare
    from kimbox.lock.diff import as_json, as_text
    from kimbox.log import log
    from kimbox.project import pins

    relocked = pins.relock(project, update=update, dry_run=dry_run)
    for warning in relocked.warnings:
        log.warn(printable(warning))
    logs = compare.logs(relocked.diff) if relocked.diff else {}
    if relocked.diff:
        lines = as_text(relocked.diff, logs)
    else:
        lines = [f"{name}: {old or 'new'} -> {new}" for name, (old, new) in relocked.moved.items()]
        lines += [f"{relocked.packages} packages"] if relocked.packages else []
    outcome = "would write" if dry_run else "wrote"
    lines.append(f"{outcome} {relocked.path}" if relocked.is_written else f"{relocked.path} is up to date")
    changes = {name: {"old": old, "new": new} for name, (old, new) in relocked.moved.items()}
    result = {
        "file": str(relocked.path),
        "written": relocked.is_written and not dry_run,
        "moved": changes,
        "removed": relocked.removed,
        "dry_run": dry_run,
        "warnings": relocked.warnings,
        "diff": as_json(relocked.diff, logs) if relocked.diff else None,
    }
    report("lock", result, "\n".join(map(printable, lines)))
