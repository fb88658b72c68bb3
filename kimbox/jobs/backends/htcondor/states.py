"""The state of each job of a cluster. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

import attrs

from kimbox.jobs.backends.htcondor.held import SPOOLING


class State(StrEnum):
    """What a job does."""

    IDLE = "idle"  #: it waits for a node, or for its files
    RUNNING = "running"
    HELD = "held"
    DONE = "done"  #: it has ended, whatever its status
    REMOVED = "removed"


#: States in which a job stays until somebody does something.
FINAL = (State.HELD, State.DONE, State.REMOVED)

#: The number of a state in the attribute JobStatus. Transferring output (6) and suspended (7) are parts of running.
BY_NUMBER = {
    1: State.IDLE, 2: State.RUNNING, 3: State.REMOVED, 4: State.DONE, 5: State.HELD, 6: State.RUNNING, 7: State.RUNNING,
}  # fmt: skip


@attrs.frozen
class JobState:
    """A job. `starts`: how often it was started; each start after the first is because of an eviction or a retry."""

    process: int
    state: State
    starts: int = 0
    host: str = ""
    hold_code: int | None = None
    hold_subcode: int | None = None
    hold_reason: str = ""

    @classmethod
    def of(cls, process: int, status: int, code: int | None, subcode: int | None, reason: str, starts: int) -> JobState:
        """The state of a job in the queue. One whose files are being sent is held by HTCondor, and counts as idle."""
        state = BY_NUMBER.get(status, State.IDLE)
        if state is State.HELD and code != SPOOLING:
            return cls(process, state, starts, "", code, subcode, reason)
        return cls(process, State.IDLE if state is State.HELD else state, starts)


def words(states: Iterable[JobState]) -> str:
    """Returns the number of jobs in each state in words."""
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state]) or "no jobs"
