"""kimbox job release: run held jobs again."""

from __future__ import annotations

from kimbox.cli.jobs.watch import Target
from kimbox.cli.output import report


def release(cluster: Target = None) -> None:
    """Run the held jobs of a submission again. `kimbox job watch` shows why they are held.

    The JSON has: id, cluster and released (the number of jobs).

    \b
    Examples:
      kimbox job release
      kimbox job release 1234
    """
    from kimbox.actions.jobs.pool import watch
    from kimbox.jobs.backends.htcondor.submission import find

    submission = watch.located(find(cluster))
    count = watch.release(submission)
    result = {"id": submission.id, "cluster": submission.cluster, "released": count}
    report("job", result, f"released {count} jobs of cluster {submission.cluster}")
