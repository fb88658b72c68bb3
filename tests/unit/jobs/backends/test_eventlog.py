"""HTCondor's event log, and why a job is held. The log is one of a real pool."""

from __future__ import annotations

import pytest

from kimbox.jobs.backends.htcondor import eventlog, held
from kimbox.jobs.backends.htcondor.states import JobState, State, words

#: A job that ran and could not send its results; another that a node evicted, and that ended.
LOG = """\
000 (004.000.000) 2026-11-29 06:21:52 Job submitted from host: <127.0.0.1:19618?addrs=127.0.0.1-19618>
...
000 (004.001.000) 2026-11-29 06:21:52 Job submitted from host: <127.0.0.1:19618?addrs=127.0.0.1-19618>
...
040 (004.000.000) 2026-11-29 06:21:57 Finished transferring input files
...
001 (004.000.000) 2026-11-29 06:21:57 Job executing on host: <127.0.0.1:19618?addrs=127.0.0.1-19618>
\tSlotName: slot1_1@localhost
\tCpus = 1
...
006 (004.000.000) 2026-11-29 06:21:57 Image size of job updated: 45
\t5  -  MemoryUsage of job (MB)
...
012 (004.000.000) 2026-11-29 06:21:57 Job was held.
\tTransfer output files failure at execution point slot1_1@localhost. Details: (errno 2) No such file or directory
\tCode 12 Subcode 2
...
001 (004.001.000) 2026-11-29 06:21:58 Job executing on host: <127.0.0.1:19618?addrs=127.0.0.1-19618>
...
004 (004.001.000) 2026-11-29 06:21:59 Job was evicted.
\t(0) CPU times
...
001 (004.001.000) 2026-11-29 06:22:08 Job executing on host: <127.0.0.1:19618?addrs=127.0.0.1-19618>
...
005 (004.001.000) 2026-11-29 06:22:09 Job terminated.
\t(1) Normal termination (return value 0)
...
"""


def states(text: str) -> dict[int, JobState]:
    return eventlog.read(text.encode())[1]


def test_the_states_of_a_cluster() -> None:
    """The last event counts; each start is counted; a held job has its codes and its reason."""
    cluster, jobs = eventlog.read(LOG.encode())
    assert (4, {0, 1}) == (cluster, set(jobs))
    assert (State.HELD, 1, 12, 2) == (jobs[0].state, jobs[0].starts, jobs[0].hold_code, jobs[0].hold_subcode)
    assert jobs[0].hold_reason.startswith("Transfer output files failure")
    assert (State.DONE, 2) == (jobs[1].state, jobs[1].starts)
    assert "1 held, 1 done" == words(jobs.values())


def test_a_job_whose_node_vanished_waits() -> None:
    """While HTCondor tries to reconnect, the job may still run. Then it is in the queue again, without an eviction."""
    log = """\
001 (004.008.000) 2026-11-29 14:34:39 Job executing on host: <127.0.0.1:59161?addrs=127.0.0.1-59161>
...
022 (004.008.000) 2026-11-29 14:34:39 Job disconnected, attempting to reconnect
    Socket between submit and execute hosts closed unexpectedly
    Trying to reconnect to slot1_1@localhost <127.0.0.1:59161?addrs=127.0.0.1-59161>
...
024 (004.008.000) 2026-11-29 14:35:39 Job reconnection failed
    Job disconnected too long: JobLeaseDuration (60 seconds) expired
    Can not reconnect to slot1_1@localhost, rescheduling job
...
"""
    assert (State.RUNNING, 1) == (states(log[: log.index("024 (")])[8].state, states(log)[8].starts)
    assert State.IDLE is states(log)[8].state


def test_every_prefix_of_a_log_can_be_read() -> None:
    """HTCondor may be writing it: an event counts when it is complete."""
    for end in range(len(LOG)):
        assert set(states(LOG[:end])) <= {0, 1}
    assert State.RUNNING is states(LOG[: LOG.index("012 (")])[0].state


def test_a_later_cluster_replaces_an_earlier_one() -> None:
    """The files were submitted twice with condor_submit."""
    second = LOG.replace("(004.", "(005.")
    cluster, jobs = eventlog.read((LOG + second[: second.index("040 (")]).encode())
    assert (5, {State.IDLE}) == (cluster, {job.state for job in jobs.values()})


def test_other_text_is_left_out() -> None:
    """The log lies in a folder of the user: it may have anything, also characters that control a terminal."""
    hostile = (
        "junk\n...\n012 (004.000.000) x\n\t\x1b[31mred\n\tCode 9999999 Subcode 1\n...\n\xff\n999 (004.007.000) x\n...\n"
    )
    (job,) = states(hostile).values()
    assert (State.HELD, None, "\ufffd[31mred") == (job.state, job.hold_code, job.hold_reason)


@pytest.mark.parametrize(
    ("code", "subcode", "reason", "expected"),
    [
        (34, 102, "Error from slot1: memory usage exceeded request_memory", "--memory"),
        (21, 102, "Error from slot1_1@localhost: memory usage exceeded request_memory", "--memory"),
        (47, 0, "The job exceeded allowed execute duration of 00:05", "--timeout"),
        (12, 28, "Transfer output files failure", "job release"),
        (6, 2, "Failed to execute", "Python 3.11"),
        (13, 0, "", "job release"),
        (1, 0, "via condor_hold (by user kim)", "job release"),
        (21, 0, "VMGAHP_ERR_INTERNAL", "administrator"),
        (9876, None, "", "job release"),
        (None, None, "", "job release"),
    ],
)
def test_a_hold_has_an_explanation(code: int | None, subcode: int | None, reason: str, expected: str) -> None:
    """In words, with what helps, and with HTCondor's own reason."""
    found = held.explain(code, subcode, reason)
    assert expected in found.hint
    assert reason in found.what


def test_the_subcode_of_a_transfer_is_an_errno() -> None:
    """It is added in words; that of another code is not."""
    assert "No space left on device" in held.explain(12, 28, "").what
    assert "No space left" not in held.explain(34, 28, "").what


def test_a_job_whose_files_are_sent_is_not_held() -> None:
    """HTCondor gives it the status of a held one."""
    assert State.IDLE is JobState.of(0, 5, held.SPOOLING, None, "Spooling input data files", 0).state
    assert State.HELD is JobState.of(0, 5, 12, 2, "", 0).state
