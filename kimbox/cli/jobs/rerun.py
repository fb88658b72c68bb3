"""kimbox job rerun: run a job again from its record, and compare the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.jobs.run import BoxName, Cold, Keep
from kimbox.cli.output import printable, report
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.jobs.rerun import Rerun

#: Maximum number of files that the text names.
MAX_SHOWN = 20

Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="GLOB", help="Result that may differ, below `output`. May be repeated."),
]


def rerun(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="The file job.json of the results.")],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Folder of the job. Default: the one of that name beside the results."),
    ] = None,
    box: BoxName = None,
    file: target.File = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="OUT", help="New folder for the results. Default: that of RECORD and .rerun."),
    ] = None,
    ignore: Ignore = None,
    cold: Cold = False,
    keep: Keep = False,
) -> None:
    """Run a job again from its record, and compare the results byte by byte.

    Machine, arguments, network and time limit are those of the record. The lock is the one beside the record, so that
    packages and commits are those of the first run. It is an error if the files of DIR, the spec or the image are
    others: the message names them. The times of files do not count.

    All files below `output` are compared, with the targets of links and the permission to execute. A pattern of
    --ignore is one of `kimbox job extract --only`.

    Exit status: 0 if the job ended as before and its results are equal. 118 if not. 121 to 125 as for `kimbox job run`
    if it is not known how the job ends now. 5 if it cannot be run again as it was, 3 if RECORD is no record.

    \b
    Examples:
      kimbox job rerun study.out/job.json
      kimbox job rerun results/job.json study --output again --ignore '*.log' --ignore 'plots/**'
    """
    from kimbox.actions.jobs.rerun import RerunRequest, as_json
    from kimbox.actions.jobs.rerun import rerun as run_again
    from kimbox.jobs.disk.extract import selector
    from kimbox.jobs.record import read_record

    selector(ignore or [], "--ignore")
    read = read_record(record)
    results = record.resolve().parent
    result = run_again(
        RerunRequest(
            read,
            target.project(box or (target.check_name(read.box) if file is None else None), file),
            folder or results.with_name(_folder_name(read.folder_name)),
            output or results.with_name(f"{results.name}.rerun"),
            tuple(ignore or ()),
            keep,
            cold,
        )
    )
    report("job", as_json(result), _text(result))
    raise typer.Exit(result.status)


def _folder_name(name: str) -> str:
    """Returns the name of the folder of a job in a record. Raises UsageError if it is none."""
    if name in (".", ".."):
        raise UsageError("the record has no name of a folder", code="usage", hint="kimbox job rerun RECORD DIR")
    return name


def _text(result: Rerun) -> str:
    """Returns the result as text: how it ended, and the files that differ."""
    from kimbox.image.disk.ext4.directories import shown

    verdict = result.done.verdict
    lines = [f"{verdict.outcome}{f': {verdict.reason}' if verdict.reason else ''}"]
    lines += [f"{one.kind:8} output/{shown(one.path)}" for one in result.differences[:MAX_SHOWN]]
    if (more := len(result.differences) - MAX_SHOWN) > 0:
        lines.append(f"and {more} more")
    if result.is_same:
        lines.append("the job ended as before, and its results are equal")
    else:
        lines += [] if result.ended_the_same else ["the job did not end as before"]
    lines.append(f"the results are in {result.done.output}")
    return "\n".join(map(printable, lines))
