"""kimbox job watch: show the states of submitted jobs until they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli.output import printable, report, table
from kimbox.log import log

if TYPE_CHECKING:
    from kimbox.jobs.backends.htcondor.states import JobState
    from kimbox.jobs.backends.htcondor.submission import Submission

#: The argument of the actions on a submission.
Target = Annotated[
    str | None,
    typer.Argument(metavar="CLUSTER", help="Cluster, id or folder of a submission. Default: the last one."),
]

#: Exit status if a job is held or was removed.
NOT_DONE_STATUS = 1

#: Maximum number of characters of an item in the table.
SHOWN_CHARACTERS = 60


def watch(
    cluster: Target = None,
    once: Annotated[bool, typer.Option("--once", help="Show the present states, and do not wait.")] = False,
) -> None:
    """Show the states of submitted jobs (idle, running, held, done, removed) until none waits or runs.

    The event log is followed if the schedd is on this host; else the schedd is asked every few seconds. For each held
    job, the table has the reason and what helps. Ctrl-C ends the command and no job: run it again at any time.

    The exit status is 0 if all jobs are done, and 1 if one is held or was removed.

    The JSON has: id, cluster, jobs (process, item, state, starts, host; of a held job: code, subcode, reason, hint).

    \b
    Examples:
      kimbox job watch
      kimbox job watch 1234
      kimbox job watch 1234 --once
    """
    from kimbox.actions.jobs.pool import watch as watching
    from kimbox.jobs.backends.htcondor import states
    from kimbox.jobs.backends.htcondor.submission import find

    submission = watching.located(find(cluster))
    found: list[JobState] = []
    if once:
        found = watching.states_of(submission)
    else:
        with log.step(f"watching cluster {submission.cluster}"):
            for found in watching.watch(submission):
                log.info(states.words(found))
    rows = [as_json(submission, state) for state in found]
    report("job", {"id": submission.id, "cluster": submission.cluster, "jobs": rows}, _table(rows, found))
    is_over = all(state.state is states.State.DONE for state in found)
    raise typer.Exit(0 if is_over or once else NOT_DONE_STATUS)


def as_json(submission: Submission, state: JobState) -> dict[str, Any]:
    """Returns a job for --json and for the table."""
    from kimbox.jobs.backends.htcondor.held import explain
    from kimbox.jobs.backends.htcondor.states import State

    item = submission.item(state.process)
    row: dict[str, Any] = {
        "process": state.process,
        "item": item.text if item else None,
        "state": str(state.state),
        "starts": state.starts,
        "host": state.host or None,
    }
    if state.state is State.HELD:
        why = explain(state.hold_code, state.hold_subcode, state.hold_reason)
        row |= {"code": state.hold_code, "subcode": state.hold_subcode, "reason": why.what, "hint": why.hint}
    return row


def _table(rows: list[dict[str, Any]], found: list[JobState]) -> str:
    """Returns one row for each job, and the reason of each held one."""
    from kimbox.jobs.backends.htcondor import states

    cells = [["job", "item", "state", "starts"]]
    for row in rows:
        item = printable((row["item"] or "-")[:SHOWN_CHARACTERS])
        cells.append([str(row["process"]), item, row["state"], str(row["starts"])])
    lines = [table(cells), "", states.words(found)]
    for row in rows:
        if "reason" in row:
            lines += [f"job {row['process']} is held: {printable(row['reason'])}", f"  hint: {row['hint']}"]
    return "\n".join(lines)
