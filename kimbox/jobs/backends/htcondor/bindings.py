"""HTCondor's schedd through its Python bindings: the only module that imports them, when they are needed.

The bindings are the extra `kimbox[htcondor]`. They find the pool by the configuration of HTCondor, as its tools do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, MissingToolError
from kimbox.jobs.backends.htcondor.description import DESCRIPTION, ITEMS, MARK
from kimbox.jobs.backends.htcondor.states import JobState
from kimbox.log import printable
from kimbox.run import which

#: Actions on jobs, by the names that the bindings have.
REMOVE, RELEASE = "Remove", "Release"

#: Attributes of a job that are read.
ATTRIBUTES = [
    "ProcId", "JobStatus", "HoldReason", "HoldReasonCode", "HoldReasonSubCode", "NumJobStarts", "RemoteHost",
    "StageOutFinish",
]  # fmt: skip

#: Hint of an error of the schedd.
HINT = "`condor_status -schedd` shows the schedds; `kimbox doctor` checks HTCondor on this host"


def require() -> Any:
    """Returns the module of the bindings. Raises MissingToolError."""
    os.environ.setdefault("CONDOR_CONFIG", _configuration())
    try:
        import htcondor2
    except ImportError:
        raise MissingToolError(
            "the Python bindings of HTCondor are not installed",
            hint="pip install 'kimbox[htcondor]'; or `kimbox job submit DIR --write FOLDER`, then condor_submit",
            fields={"program": "htcondor2"},
        ) from None
    return htcondor2


def is_used() -> bool:
    """Whether this host has a part of HTCondor, or has submitted jobs."""
    has_bindings = importlib.util.find_spec("htcondor2") is not None
    return has_bindings or which("condor_submit") is not None or paths.submissions_dir().exists()


def check() -> None:
    """Raises MissingToolError without the bindings, and KimboxError (`pool-unreachable`) if no schedd is configured."""
    with Schedd().opened("looking for the schedd"):
        pass


def variables() -> dict[str, str]:
    """Returns the variables of this process that configure HTCondor, for one of its programs."""
    return {key: value for key, value in os.environ.items() if key == "CONDOR_CONFIG" or key.startswith("_CONDOR_")}


def _configuration() -> str:
    """Returns the value of CONDOR_CONFIG: without a configuration on this host, the bindings use variables alone."""
    system = Path("/etc/condor/condor_config")
    return str(system) if system.exists() else "ONLY_ENV"


@attrs.frozen
class Schedd:
    """A schedd. `pool`: host of its collector; `name`: its name; empty: those of the configuration of this host."""

    pool: str = ""
    name: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether files are sent to the schedd and back. Another host does not see those of this one."""
        return bool(self.pool or self.name)

    @contextlib.contextmanager
    def opened(self, what: str) -> Iterator[tuple[Any, Any]]:
        """The module of the bindings and the schedd. Its errors become KimboxError (`pool-unreachable`)."""
        htcondor = require()
        try:
            if not self.is_remote:
                yield htcondor, htcondor.Schedd()
                return
            collector = htcondor.Collector(self.pool or None)
            found = collector.locate(htcondor.DaemonType.Schedd, self.name or None)
            yield htcondor, htcondor.Schedd(found)
        except (htcondor.HTCondorException, RuntimeError, ValueError) as error:
            where = self.name or self.pool or "this host"
            raise KimboxError(
                f"{what} failed: the schedd of {where} does not answer, or refuses it: {printable(str(error))[:500]}",
                code="pool-unreachable",
                hint=HINT,
                fields={"schedd": where},
            ) from None

    def submit(self, folder: Path) -> int:
        """Submits the description in a folder; returns the cluster. Files are sent to a remote schedd."""
        with self.opened("submitting") as (htcondor, schedd), contextlib.chdir(folder):
            text = (folder / DESCRIPTION).read_text()
            head, _, queue = text.rpartition("\nqueue")
            description = htcondor.Submit(head)
            items = folder / ITEMS
            data = iter([{"item": line} for line in items.read_text().split()]) if items.exists() else None
            if data is None:
                result = schedd.submit(description, count=int(queue.strip() or 1), spool=self.is_remote)
            else:
                result = schedd.submit(description, itemdata=data, spool=self.is_remote)
            if self.is_remote:
                schedd.spool(result)
            return int(result.cluster())

    def states(self, cluster: int) -> dict[int, JobState]:
        """Returns the jobs of a cluster that are in the queue, by process."""
        with self.opened("asking for the jobs") as (_, schedd):
            return {state.process: state for state in map(_state, schedd.query(_of(cluster), ATTRIBUTES))}

    def find(self, submission_id: str) -> int | None:
        """Returns the cluster of a submission that was killed before it kept the number; None if there is none."""
        with self.opened("asking for the jobs") as (_, schedd):
            found = schedd.query(f'{MARK} =?= "{submission_id}"', ["ClusterId"])
            return max((int(job["ClusterId"]) for job in found), default=None)

    def retrieve(self, cluster: int, processes: list[int], folder: Path) -> None:
        """Gets the files of jobs that have ended from a remote schedd into the folder of the submission."""
        with self.opened("getting the results") as (_, schedd), contextlib.chdir(folder):
            for process in processes:
                schedd.retrieve(f"{_of(cluster)} && ProcId == {process}")

    def act(self, action: str, cluster: int, processes: list[int] | None = None) -> None:
        """Removes or releases jobs of a cluster: all, or these."""
        which = "" if processes is None else f" && member(ProcId, {{{', '.join(map(str, processes))}}})"
        with self.opened(f"the action {action.lower()}") as (htcondor, schedd):
            schedd.act(getattr(htcondor.JobAction, action), _of(cluster) + which)


def _of(cluster: int) -> str:
    return f"ClusterId == {int(cluster)}"


def _state(job: Any) -> JobState:
    """Returns the state of a job. A value that is missing is an object of its own kind in the bindings."""
    numbers = {key: job.get(key) for key in ATTRIBUTES}
    found = {key: value if type(value) is int else None for key, value in numbers.items()}
    reason = job.get("HoldReason")
    state = JobState.of(
        int(job["ProcId"]),
        int(job["JobStatus"]),
        found["HoldReasonCode"],
        found["HoldReasonSubCode"],
        printable(reason)[:500] if isinstance(reason, str) else "",
        found["NumJobStarts"] or 0,
    )
    host = job.get("RemoteHost")
    return attrs.evolve(state, host=printable(host)[:200]) if isinstance(host, str) else state
