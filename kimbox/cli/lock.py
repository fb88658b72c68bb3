"""kimbox lock: write the lock of a box, check it, or update its pins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli import several, target
from kimbox.cli.options import seconds_of
from kimbox.cli.output import printable
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.project.project import Project

#: Maximum value of `--max-age`, in days.
MAX_AGE_DAYS = 3650

MaxAge = Annotated[
    str | None,
    typer.Option(
        "--max-age", metavar="TIME", help="Warn if the packages of the lock are older than this, for example 7d."
    ),
]


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
    max_age: MaxAge = None,
) -> None:
    """Write kimbox.lock beside the spec: each repository at one commit, each package of the image at one version.

    Each box of a spec with several has a lock of its own, kimbox.NAME.lock.

    Pins that are in the lock stay, unless an option updates them. If the spec names more packages than before, the
    packages in the lock keep their versions as long as the archives have these.

    --check writes nothing and contacts no server. The exit status is 3 if `kimbox lock` would change the file, because
    the spec, a repository, the image or a folder has changed. With --remote, the exit status is also 3 if a locked
    commit is not available anywhere. --remote also reports moved tags, force-pushed branches and newer commits.

    The age of packages is the time since the newest index of the archives that they were chosen from.

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
    limit_s = None if max_age is None else seconds_of("--max-age", max_age, max_days=MAX_AGE_DAYS)

    def work(name: str | None, spec: Path | None) -> tuple[dict[str, Any], str]:
        project = target.project(name, spec)
        if check:
            return _check(project, remote, limit_s)
        return _lock(project, None if update_all else update or [], dry_run, limit_s)

    several.one_or_each("lock", box, file, work)


def _warn_of_age(project: Project, as_of: str | None, limit_s: float | None) -> None:
    """Warns if the packages of a lock are older than `limit_s`."""
    from kimbox.lock.apt import age
    from kimbox.log import log

    if as_of is not None and limit_s is not None and age.is_older(as_of, limit_s):
        name = f" {project.shipped}" if project.shipped else ""
        log.warn(
            f"the packages in the lock of {project.name} are of {age.words(as_of)}: `kimbox lock --update "
            f"packages{name}` chooses the present ones"
        )


def _check(project: Project, remote: bool, limit_s: float | None) -> tuple[dict[str, Any], str]:
    from kimbox.lock.lockfile import read_lock
    from kimbox.project.check import verify_lock

    path, notes = verify_lock(project, remote=remote)
    packages = read_lock(path).packages
    as_of = packages.as_of if packages else None
    _warn_of_age(project, as_of, limit_s)
    text = "\n".join([*(f"note: {printable(note)}" for note in notes), f"{path} matches its spec"])
    return {"file": str(path), "stands": True, "notes": notes, "packages_as_of": as_of}, text


def _lock(
    project: Project, update: list[str] | None, dry_run: bool, limit_s: float | None
) -> tuple[dict[str, Any], str]:
    from kimbox.actions import diff as compare
    from kimbox.lock.diff import as_json, as_text
    from kimbox.log import log
    from kimbox.project import pins

    relocked = pins.relock(project, update=update, dry_run=dry_run)
    for warning in relocked.warnings:
        log.warn(printable(warning))
    _warn_of_age(project, relocked.packages_as_of, limit_s)
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
        "packages_as_of": relocked.packages_as_of,
        "warnings": relocked.warnings,
        "diff": as_json(relocked.diff, logs) if relocked.diff else None,
    }
    return result, "\n".join(map(printable, lines))
