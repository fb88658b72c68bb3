"""Reads HTCondor's event log of a cluster (HTCondor manual, "Job Event Log Codes"). Pure.

The log is text in a folder of the user, and its content is untrusted: a line that is no event is left out.
"""

from __future__ import annotations

import re

import attrs

from kimbox.jobs.backends.htcondor.states import JobState, State
from kimbox.log import printable

#: Maximum size of a log that is read, in bytes.
MAX_BYTES = 64 << 20

#: The first line of an event: its number, cluster and process.
_HEAD = re.compile(r"([0-9]{3}) \(([0-9]{1,9})\.([0-9]{1,9})\.[0-9]{1,9}\) ")

#: The last line of an event.
_END = "..."

#: The hold code and subcode.
_CODE = re.compile(r"\s*Code ([0-9]{1,6}) Subcode ([0-9]{1,9})")

#: Numbers of events, and the state after each.
SUBMITTED, EXECUTING, EVICTED, TERMINATED, SHADOW_EXCEPTION, ABORTED, HELD, RELEASED = 0, 1, 4, 5, 7, 9, 12, 13
RECONNECT_FAILED = 24
STATES = {
    SUBMITTED: State.IDLE,
    EXECUTING: State.RUNNING,
    EVICTED: State.IDLE,
    TERMINATED: State.DONE,
    SHADOW_EXCEPTION: State.IDLE,
    ABORTED: State.REMOVED,
    HELD: State.HELD,
    RELEASED: State.IDLE,
    RECONNECT_FAILED: State.IDLE,
}

#: Maximum length of a reason, in characters.
MAX_REASON = 500


def read(data: bytes) -> tuple[int | None, dict[int, JobState]]:
    """Returns the last cluster in a log, and the state of each of its jobs by process."""
    cluster: int | None = None
    jobs: dict[int, JobState] = {}
    for head, lines in _events(data.decode(errors="replace")):
        number, event_cluster, process = (int(part) for part in head.groups())
        if cluster is None or event_cluster > cluster:
            cluster, jobs = event_cluster, {}
        if event_cluster == cluster and number in STATES:
            jobs[process] = _after(jobs.get(process, JobState(process, State.IDLE)), number, lines)
    return cluster, jobs


def _events(text: str) -> list[tuple[re.Match[str], list[str]]]:
    """Returns the first line and the other lines of each complete event."""
    found: list[tuple[re.Match[str], list[str]]] = []
    head: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if line == _END:
            if head:
                found.append((head, lines))
            head, lines = None, []
        elif head is None:
            head, lines = _HEAD.match(line), [line]
        else:
            lines.append(line)
    return found


def _after(job: JobState, number: int, lines: list[str]) -> JobState:
    """Returns the state of a job after an event."""
    job = attrs.evolve(job, state=STATES[number], host="", hold_code=None, hold_subcode=None, hold_reason="")
    if number == EXECUTING:
        host = lines[0].rpartition("host: ")[2]
        return attrs.evolve(job, starts=job.starts + 1, host=printable(host)[:MAX_REASON])
    if number == HELD:
        code = next((match for line in lines if (match := _CODE.match(line))), None)
        reason = printable(lines[1].strip())[:MAX_REASON] if len(lines) > 1 else ""
        return attrs.evolve(
            job,
            hold_code=int(code[1]) if code else None,
            hold_subcode=int(code[2]) if code else None,
            hold_reason=reason,
        )
    return job
