"""kimbox job list: list the submissions."""

from __future__ import annotations

from kimbox.cli.output import printable, report, table


def submissions() -> None:
    """List the jobs that were submitted to a pool and not removed, with the number of jobs in each state.

    The JSON has: submissions, each with id, cluster, created_at, box, folder, output, jobs, and states (null if the
    schedd does not answer).

    \b
    Examples:
      kimbox job list
    """
    from kimbox.actions.jobs.pool.watch import overview
    from kimbox.jobs.backends.htcondor import states

    rows = []
    cells = [["cluster", "submitted", "box", "jobs", "states", "folder"]]
    for one, found in overview():
        words = "not known" if found is None else states.words(found)
        cluster = "-" if one.cluster is None else str(one.cluster)
        name = printable(one.job_folder.name)
        cells.append([cluster, one.created_at, printable(one.static["box"]), str(one.count), words, name])
        rows.append(
            {
                "id": one.id,
                "cluster": one.cluster,
                "created_at": one.created_at,
                "box": one.static["box"],
                "folder": str(one.job_folder),
                "output": str(one.output),
                "jobs": one.count,
                "states": None if found is None else [str(state.state) for state in found],
            }
        )
    report("job", {"submissions": rows}, table(cells) if rows else "no job was submitted")
