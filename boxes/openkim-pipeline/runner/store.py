"""Files of the director that must survive a power failure: the results, and the ids of the jobs in the queue."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import results
from jobs import BadJobError, load_json
from results import Attempt

#: Maximum number of duplicate results that are kept for one job.
DUPLICATES = 16

_DUPLICATES = "duplicates"


def write(path: Path, content: bytes) -> None:
    """Replaces a file atomically. On return the new content is on the disk."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Results:
    """The results: JOB.json is the valid one; all others of that job are in `duplicates`, marked as such.

    The first result with status `done` is valid; until there is one, the first failed result.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / _DUPLICATES).mkdir(exist_ok=True)
        self.status: dict[str, str] = {}
        for path in folder.glob("*.json"):
            try:
                self.status[path.stem] = load_json(path.read_bytes())["status"]
            except (BadJobError, LookupError, TypeError):
                path.rename(path.with_suffix(".broken"))  # the job is run again
        self._duplicates = {path.name for path in (folder / _DUPLICATES).glob("*.json")}

    @property
    def duplicates(self) -> int:
        """Number of duplicate results."""
        return len(self._duplicates)

    def count(self, job: str) -> int:
        """Number of results that are kept for a job."""
        return (job in self.status) + sum(name.startswith(f"{job}.") for name in self._duplicates)

    def keep(self, attempt: Attempt, result: dict[str, Any]) -> None:
        """Keeps a result. The same result a second time (its upload could not be removed before) changes nothing."""
        path = self._folder / f"{attempt.job}.json"
        if attempt.job in self.status:
            kept = load_json(path.read_bytes())
            if (kept["worker"], kept["attempt"], kept["run"]) == (attempt.worker, attempt.number, attempt.run):
                return
            if result["status"] == "failed" or kept["status"] == "done":
                self._keep_beside(attempt, result)
                return
            self._keep_beside(Attempt(attempt.job, kept["worker"], kept["attempt"], kept["run"]), kept)
        write(path, results.text(result))
        self.status[attempt.job] = result["status"]

    def _keep_beside(self, attempt: Attempt, result: dict[str, Any]) -> None:
        if self.count(attempt.job) <= DUPLICATES:
            write(self._folder / _DUPLICATES / attempt.file_name, results.text(result | {"duplicate": True}))
            self._duplicates.add(attempt.file_name)


class Ledger:
    """The id of each job in the queue, which has no search by name.

    A line is added after the answer of the queue. A director that dies in between leaves one job without a line; the id
    of that job follows the last one of the ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ids: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(BadJobError, LookupError, TypeError):  # a line may be incomplete
                    entry = load_json(line)
                    self.ids[entry["job"]] = int(entry["id"])

    def add(self, job: str, number: int) -> None:
        """Records the id of a job in the queue."""
        with self._path.open("ab") as file:
            file.write(
                b"\n" + json.dumps({"job": job, "id": number}).encode() + b"\n"
            )  # the previous line may be incomplete
            file.flush()
            os.fsync(file.fileno())
        self.ids[job] = number
