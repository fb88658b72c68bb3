"""Results: the text that a worker sends, and the director's checks of it.

A worker may be compromised, so `parse` trusts nothing: it checks sizes, names, types and numbers, and builds its result
from the checked values. Only `box`, the worker's description of itself, is copied unchecked, if it is JSON of bounded
size.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jobs
from jobs import BadJobError, Expected, Job
from lammps import LAST_LINES, LINE_CHARACTERS, Outcome

#: Longest text of a result, in bytes; most of it is the worker's box.json.
LIMIT = 256 << 10

WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
RUN = re.compile(r"[0-9a-f]{8}")
_NAME = re.compile(rf"({jobs.NAME.pattern})\.({WORKER.pattern})\.([1-9][0-9]{{0,5}})\.({RUN.pattern})\.json")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_LINE = re.compile(rf"[^\x00-\x1f\x7f]{{0,{LINE_CHARACTERS}}}")

_FIELDS = {
    "format", "job", "asked", "worker", "attempt", "run", "status", "values", "reason", "tail", "lammps",
    "started", "ended", "box",
}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job: its `number`, as the queue counts reservations, and a random id.

    The random id is needed because a queue that is killed may lose its last count.
    """

    job: str
    worker: str
    number: int
    run: str

    @property
    def file_name(self) -> str:
        """The file name of its result, for the upload and among duplicates."""
        return f"{self.job}.{self.worker}.{self.number}.{self.run}.json"


def now() -> str:
    """The present time in the format of results."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text(result: dict[str, Any]) -> bytes:
    """The content of a result file."""
    return json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def make(attempt: Attempt, job: Job, outcome: Outcome, started: str, box: object) -> bytes:
    """The text of a result that a worker sends."""
    return text(
        {
            "format": 1, "job": job.name, "asked": job.fields(), "worker": attempt.worker, "attempt": attempt.number,
            "run": attempt.run, "status": "failed" if outcome.values is None else "done", "values": outcome.values,
            "reason": outcome.reason, "tail": list(outcome.tail), "lammps": outcome.version, "started": started,
            "ended": now(), "box": box,
        }
    )  # fmt: skip


def attempt_of(name: str) -> Attempt | None:
    """The attempt in the name of a result file; None for any other name."""
    found = _NAME.fullmatch(name)
    return Attempt(found[1], found[2], int(found[3]), found[4]) if found else None


def parse(content: bytes, attempt: Attempt, job: Job, expected: Expected | None) -> dict[str, Any]:
    """A worker's result, checked. Raises BadJobError if it is malformed or answers another job.

    Values that differ from the expected ones make it a failed result.
    """
    if len(content) > LIMIT:
        raise BadJobError(f"a result has at most {LIMIT} bytes")
    sent = jobs.load_json(content)
    if not isinstance(sent, dict) or set(sent) != _FIELDS:
        raise BadJobError("a result has other fields")
    claimed = (sent["job"], sent["worker"], sent["attempt"], sent["run"])
    if sent["format"] != 1 or claimed != (attempt.job, attempt.worker, attempt.number, attempt.run):
        raise BadJobError("its content is not what its name says")
    if jobs.from_fields(sent["asked"]) != job:
        raise BadJobError("it answers another question")
    tail = sent["tail"]
    if not isinstance(tail, list) or len(tail) > LAST_LINES:
        raise BadJobError(f"`tail` has at most {LAST_LINES} lines")
    if not isinstance(sent["box"], dict):
        raise BadJobError("`box` is no object")
    values, reason = _values(sent), jobs.word(sent["reason"], _LINE, "reason")
    if values and expected and not expected.agrees(**values):
        reason = (
            f"a = {values['a']:.4f} A and E = {values['e']:.4f} eV/atom are not within {expected.tolerance:g} of "
            f"{expected.a:.4f} and {expected.e:.4f}"
        )
    return {
        "format": 1, "job": job.name, "asked": job.fields(), "worker": attempt.worker, "attempt": attempt.number,
        "run": attempt.run, "status": "failed" if reason or values is None else "done", "values": values,
        "reason": reason, "tail": [jobs.word(line, _LINE, "line") for line in tail],
        "lammps": jobs.word(sent["lammps"], _LINE, "version"), "started": jobs.word(sent["started"], _TIME, "time"),
        "ended": jobs.word(sent["ended"], _TIME, "time"), "received": now(), "duplicate": False, "box": sent["box"],
    }  # fmt: skip


def _values(sent: dict[str, Any]) -> dict[str, float] | None:
    """`values` if the job is done; None if it failed."""
    if sent["status"] == "failed" and sent["values"] is None:
        return None
    values = sent["values"]
    if sent["status"] != "done" or not isinstance(values, dict) or set(values) != {"a", "e"}:
        raise BadJobError("`values` has a and e where the job is done, and is null where it failed")
    return {"a": jobs.number(values["a"], 0.1, 100.0), "e": jobs.number(values["e"], -1e4, 1e4)}
