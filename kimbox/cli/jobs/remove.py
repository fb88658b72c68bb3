"""kimbox job remove: remove submitted jobs from the queue."""

from __future__ import annotations

from kimbox.cli.jobs.watch import Target
from kimbox.cli.output import report


def remove(cluster: Target = None) -> None:
    """Remove the jobs of a submission from the queue, and its files. Jobs that run are ended.

    Results that `kimbox job fetch` has written stay; those that it has not are lost.

    The JSON has: id and cluster.

    \b
    Examples:
      kimbox job remove 1234
    """
    from kimbox.actions.jobs.pool import watch
    from kimbox.jobs.backends.htcondor.submission import find

    submission = find(cluster)
    watch.remove(submission)
    report("job", {"id": submission.id, "cluster": submission.cluster}, f"removed the submission {submission.id}")
