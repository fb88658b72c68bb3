"""kimbox job recover: write the results of jobs whose kimbox was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import completers
from kimbox.cli.jobs.run import printed
from kimbox.cli.output import report
from kimbox.errors import UsageError


def recover(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="The machines. Default: all.", autocompletion=completers.boxes),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="OUT", help="New folder for the results. Default: that of the job."),
    ] = None,
) -> None:
    """Write the results of jobs whose kimbox was killed, or could not write them.

    The guest of a job goes on without kimbox: this waits for its end, and shows its output. A guest that has died is
    not started again. The results are those that `kimbox job run` writes, and the machine is removed. A sweep is
    recovered by the same `kimbox job run --each` again.

    The exit status is that of the job; of several jobs, 0 if all are ok, else 1.

    The JSON has: jobs, each with its job.json and path.

    \b
    Examples:
      kimbox job recover
      kimbox job recover openkim-dev-job-0123456789ab --output results
    """
    from kimbox.actions.jobs import unfinished
    from kimbox.jobs.result import NOT_OK_STATUS

    chosen = [unfinished.find(name) for name in names] if names else unfinished.stored()
    if output is not None and len(chosen) != 1:
        raise UsageError("--output is for one job", code="usage", fields={"option": "--output"})
    done = [unfinished.recover(machine, output) for machine in chosen]
    texts = [printed(one) for one in done] or ["there is no unfinished job"]
    report("job", {"jobs": [{**one.record, "path": str(one.output)} for one in done]}, "\n".join(texts))
    statuses = [one.verdict.status for one in done]
    raise typer.Exit(statuses[0] if len(statuses) == 1 else NOT_OK_STATUS if any(statuses) else 0)
