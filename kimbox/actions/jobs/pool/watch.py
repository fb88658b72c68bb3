"""The states of the jobs of a submission, and what a user does with them: watch, release, remove, list."""

from __future__ import annotations

import time
from collections.abc import Iterator

import attrs

from kimbox.errors import KimboxError, StateError
from kimbox.files import locked, read_bounded, remove_tree
from kimbox.jobs.backends.htcondor import bindings, eventlog, states
from kimbox.jobs.backends.htcondor.states import JobState, State
from kimbox.jobs.backends.htcondor.submission import Submission, stored
from kimbox.log import log

#: Interval between two looks at the event log, and two questions to a schedd, in seconds.
LOG_INTERVAL_S, ASK_INTERVAL_S = 1.0, 5.0

#: Maximum time for which a schedd that has answered before does not answer, in seconds.
OUTAGE_S = 600.0


def located(submission: Submission) -> Submission:
    """Returns a submission with its cluster. Raises StateError (`submission-not-found`) if it was not submitted.

    The number is missing if kimbox was killed while it submitted, or if condor_submit did it.
    """
    if submission.cluster is not None:
        return submission
    if submission.event_log.exists():
        cluster, _ = _read_log(submission)
    else:
        cluster = submission.schedd.find(submission.id)
    if cluster is None:
        raise StateError(
            f"the jobs in {submission.folder} are not in a queue",
            code="submission-not-found",
            hint=f"in that folder: condor_submit job.sub; or `kimbox job remove {submission.id}`, and submit again",
            fields={"submission": submission.id},
        )
    submission = attrs.evolve(submission, cluster=cluster)
    with locked(submission.lock_file, wait_s=-1):
        submission.write()
    return submission


def states_of(submission: Submission) -> list[JobState]:
    """Returns the state of each job, by process. The cluster is known.

    The event log has it, if the schedd writes to this folder; else the schedd is asked. A job that is no longer in the
    queue of a remote schedd has ended if its results are here, and was removed if they are not.
    """
    assert submission.cluster is not None  # noqa: S101 - see `located`
    if not submission.schedd.is_remote:
        _, known = _read_log(submission)
        return [known.get(process, JobState(process, State.IDLE)) for process in range(submission.count)]
    queued = submission.schedd.states(submission.cluster)
    return [queued.get(process) or _gone(submission, process) for process in range(submission.count)]


def _gone(submission: Submission, process: int) -> JobState:
    return JobState(process, State.DONE if submission.results(process).exists() else State.REMOVED)


def _read_log(submission: Submission) -> tuple[int | None, dict[int, JobState]]:
    try:
        return eventlog.read(read_bounded(submission.event_log, limit_bytes=eventlog.MAX_BYTES))
    except FileNotFoundError:
        return None, {}


def watch(submission: Submission) -> Iterator[list[JobState]]:
    """Yields the states whenever one has changed, until no job waits or runs. The cluster is known.

    A schedd that does not answer may be restarting: it is asked again for OUTAGE_S. Then its error is raised.
    """
    last: list[JobState] = []
    answered_at: float | None = None
    while True:
        try:
            found = states_of(submission)
            answered_at = time.monotonic()
        except KimboxError as error:
            if answered_at is None or time.monotonic() - answered_at > OUTAGE_S or error.code != "pool-unreachable":
                raise
            log.now("waiting for the schedd")
            time.sleep(ASK_INTERVAL_S)
            continue
        if found != last:
            yield found
            last = found
        if all(state.state in states.FINAL for state in found):
            return
        time.sleep(ASK_INTERVAL_S if submission.schedd.is_remote else LOG_INTERVAL_S)


def release(submission: Submission) -> int:
    """Releases the held jobs. Returns their number."""
    held = [state.process for state in states_of(submission) if state.state is State.HELD]
    if held and submission.cluster is not None:
        submission.schedd.act(bindings.RELEASE, submission.cluster, held)
    return len(held)


def remove(submission: Submission) -> None:
    """Removes the jobs from the queue, and the folder of the submission. Results that were fetched stay."""
    try:
        submission = located(submission)
    except StateError as error:
        if error.code != "submission-not-found":
            raise
    if submission.cluster is not None:
        submission.schedd.act(bindings.REMOVE, submission.cluster)
    with locked(submission.lock_file, busy=f"another kimbox process uses the submission {submission.id}"):
        remove_tree(submission.folder)
    sweep_images()


def sweep_images() -> None:
    """Removes the compressed images that no submission has any more."""
    from kimbox import paths

    for path in (paths.submissions_dir() / "images").glob("*.qcow2"):
        with locked(path.with_suffix(".lock"), wait_s=-1):
            if path.exists() and path.stat().st_nlink == 1:
                path.unlink()


def overview() -> list[tuple[Submission, list[JobState] | None]]:
    """Returns every submission of this user with its states; None where they are not known now."""
    found: list[tuple[Submission, list[JobState] | None]] = []
    for submission in stored():
        try:
            found.append((submission, states_of(located(submission))))
        except KimboxError:
            found.append((submission, None))
    return found
