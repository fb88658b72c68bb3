"""kimbox job fetch: fetch the results of submitted jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli.jobs.watch import SHOWN_CHARACTERS, Target
from kimbox.cli.output import printable, report, table

if TYPE_CHECKING:
    from kimbox.actions.jobs.pool.fetch import Fetched


def fetch(
    cluster: Target = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="The private ssh key that signs the results.")
    ] = None,
) -> None:
    """Fetch the results of the jobs that have ended, into the folder that `kimbox job submit` was given.

    They are those that `kimbox job run` writes: output, run-job.log, job.json, kimbox.lock; and with --each a folder
    for each item, and results.jsonl. Results that are there are kept. Run it again when more jobs have ended.

    The exit status is that of the job; of several jobs, 0 if all are ok, else 1.

    The JSON has: path, jobs, ok, missing, and results (item, verdict, status, folder).

    \b
    Examples:
      kimbox job fetch
      kimbox job fetch 1234 --sign ~/.ssh/id_ed25519
    """
    from kimbox.actions.jobs import provenance
    from kimbox.actions.jobs.pool import fetch as fetching
    from kimbox.actions.jobs.pool import watch
    from kimbox.jobs.backends.htcondor.submission import find
    from kimbox.jobs.result import NOT_OK_STATUS

    provenance.check_key(sign)
    done = fetching.fetch(watch.located(find(cluster)), sign)
    rows: list[dict[str, Any]] = [
        {
            "item": item.text if item else None,
            "folder": item.folder if item else None,
            "verdict": record["verdict"] if record else None,
            "status": record["status"] if record else None,
        }
        for item, record in done.records
    ]
    ok = sum(row["verdict"] == "ok" for row in rows)
    result = {"path": str(done.output), "jobs": len(rows), "ok": ok, "missing": done.missing, "results": rows}
    report("job", result, _text(done, rows, ok))
    if len(rows) == 1 and rows[0]["status"] is not None:
        raise typer.Exit(rows[0]["status"])
    raise typer.Exit(0 if ok == len(rows) else NOT_OK_STATUS)


def _text(done: Fetched, rows: list[dict[str, Any]], ok: int) -> str:
    cells = [["item", "verdict", "status"]]
    for row in rows:
        item = printable((row["item"] or "-")[:SHOWN_CHARACTERS])
        cells.append([item, row["verdict"] or "-", "-" if row["status"] is None else str(row["status"])])
    last = f"{ok} of {len(rows)} are ok, {done.missing} are missing; the results are in {done.output}"
    return f"{table(cells)}\n\n{printable(last)}"
