"""kimbox job rerun: runs a job again from its record, and compares verdict and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from kimbox.actions.jobs import run
from kimbox.actions.jobs.request import SCRATCH_MOUNT, Done, RunRequest
from kimbox.errors import KimboxError, SpecError, StateError, UsageError
from kimbox.image.disk.ext4.directories import shown
from kimbox.jobs import listing
from kimbox.jobs.disk.extract import selector
from kimbox.jobs.disk.source import read_folder
from kimbox.jobs.jobfile import read_jobfile
from kimbox.jobs.listing import Difference, Listing
from kimbox.jobs.network import Network
from kimbox.jobs.record import LOCK, JobRecord
from kimbox.jobs.result import INFRASTRUCTURE_STATUS, INTERRUPTED_STATUS, Outcome
from kimbox.jobs.vet import OUTPUT
from kimbox.lock.lockfile import read_lock
from kimbox.log import log, printable
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.spec.model import Scratch

#: Exit status if the verdict or the results are others.
DIFFERENT_STATUS = 118

#: Maximum number of files that a message names.
_MAX_NAMED = 5


@attrs.frozen
class RerunRequest:
    """The arguments of `job rerun`."""

    record: JobRecord
    project: Project
    folder: Path
    output: Path
    #: Patterns of results that are not compared, as those of `job extract --only`.
    ignored: tuple[str, ...] = ()
    keep: bool = False
    is_cold: bool = False


@attrs.frozen
class Rerun:
    """A job that has run again. `differences`: the results in which both runs differ."""

    done: Done
    differences: tuple[Difference, ...]
    #: Whether verdict, exit status and signal are those of the record.
    ended_the_same: bool

    @property
    def is_same(self) -> bool:
        """Whether both runs ended in the same way and gave the same results."""
        return self.ended_the_same and not self.differences

    @property
    def status(self) -> int:
        """The exit status: 0, that of a failure of the infrastructure, or DIFFERENT_STATUS."""
        if self.is_same:
            return 0
        outcome = self.done.verdict.outcome
        if not self.ended_the_same and outcome is Outcome.INTERRUPTED:
            return INTERRUPTED_STATUS
        if not self.ended_the_same and outcome is not Outcome.QUARANTINED and outcome in INFRASTRUCTURE_STATUS:
            return INFRASTRUCTURE_STATUS[outcome]
        return DIFFERENT_STATUS


def rerun(request: RerunRequest) -> Rerun:
    """Runs the job of a record again, with the lock, the machine and the arguments of the record.

    Raises StateError (`rerun-differs`) if the folder of the job, the spec or the lock is another one, or if this kimbox
    makes another image of them; KimboxError (`bad-record`) if the lock or the results beside the record are others than
    it says; and the errors of `run.run`.
    """
    record = request.record
    is_ignored = selector(request.ignored) if request.ignored else lambda _: False
    before = _first_results(record)
    _check_folder(record, request.folder)
    project = _as_recorded(record, request.project)
    settings = record.settings
    done = run.run(
        RunRequest(
            project,
            request.folder,
            request.output,
            record.arguments,
            cpus=settings.cpus,
            memory_bytes=settings.memory_bytes,
            scratch=_scratch(project, settings.scratch_bytes),
            size_bytes=settings.size_bytes,
            timeout_s=settings.timeout_s,
            network=_network(record),
            vetting=read_jobfile(request.folder).vetting,
            keep=request.keep,
            is_cold=request.is_cold,
        )
    )
    if done.record["manifest"] != record.manifest:
        log.warn(f"the manifest of the box is not that of the first run, by kimbox {printable(record.kimbox)}")
    after = listing.of_folder(done.output / OUTPUT)
    verdict = done.verdict
    return Rerun(
        done,
        tuple(listing.compare(before, after, is_ignored)),
        (str(verdict.outcome), verdict.exit, verdict.signal) == record.end,
    )


def as_json(result: Rerun) -> dict[str, Any]:
    """Returns the result for `--json`."""
    return {
        "same": result.is_same,
        "ended_the_same": result.ended_the_same,
        "differences": [{"path": shown(one.path), "kind": one.kind} for one in result.differences],
        "path": str(result.done.output),
        "job": result.done.record,
    }


def _first_results(record: JobRecord) -> Listing:
    """Returns the results of the first run. Raises KimboxError (`bad-record`) if there is no list of them."""
    if record.output is not None:
        return record.output
    found = listing.of_folder(record.path.parent / OUTPUT)
    if found.digest != record.output_digest:
        problem = f"does not list the results, and those in {record.path.parent / OUTPUT} are others"
        raise KimboxError(f"{record.path} {problem}", code="bad-record", fields={"path": str(record.path)})
    return found


def _check_folder(record: JobRecord, folder: Path) -> None:
    """Raises StateError if the folder has other files than that of the record."""
    source = read_folder(folder)
    found = listing.of_source(source)
    if found.digest == record.input_digest:
        return
    named = [f"{shown(one.path)} {one.kind}" for one in listing.compare(record.input, found)] if record.input else []
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    raise _differs(
        f"{folder} is not the folder of the job{': ' if named else ''}{', '.join(named[:_MAX_NAMED])}{more}",
        "name the folder as it was: kimbox job rerun RECORD DIR",
    )


def _as_recorded(record: JobRecord, project: Project) -> Project:
    """Returns the project with the lock of the record. Raises StateError if it does not make the same box."""
    if project.name != record.box:
        raise _differs(f"the box is {project.name}, and that of the record {record.box}", "name the box with --box")
    if project.box.digest != record.spec_digest:
        raise _differs(
            f"the spec of the box {record.box} was changed: {project.source}",
            "run the job with the spec as it was: kimbox job rerun RECORD -f FILE",
        )
    path = record.path.parent / LOCK
    if not path.is_file():
        raise StateError(f"{path} not found", code="file-not-found", fields={"path": str(path)})
    if read_lock(path).digest != record.lock_digest:
        raise KimboxError(f"{path} is not the lock of the record", code="bad-record", fields={"path": str(path)})
    project = attrs.evolve(project, lock_file=path, frozen=True)
    try:
        plan = make_plan(project)
    except SpecError as error:
        problem = (
            f"the box {record.box} cannot be made as it was, by kimbox {printable(record.kimbox)}: {error.message}"
        )
        raise _differs(problem, f"`kimbox job run {record.folder_name}` runs the job in the box of today") from None
    if plan.image_key != record.image:
        raise _differs(
            f"the image of the box {record.box} is {plan.image_key[:12]}, and was {record.image[:12]}",
            f"the first run was made by kimbox {printable(record.kimbox)}",
        )
    return project


def _differs(problem: str, hint: str) -> StateError:
    return StateError(f"the job cannot be run again: {problem}", code="rerun-differs", hint=hint)


def _network(record: JobRecord) -> Network:
    """Returns the network of the record. Raises KimboxError (`bad-record`) if it has none."""
    try:
        return Network.parse(record.settings.network)
    except UsageError:
        problem = "does not say what the job reaches"
        raise KimboxError(f"{record.path} {problem}", code="bad-record", fields={"path": str(record.path)}) from None


def _scratch(project: Project, size_bytes: int | None) -> Scratch | None:
    """Returns scratch space of that size, at the place of the spec."""
    if size_bytes is None:
        return None
    return Scratch(size_bytes, project.box.scratch.mount if project.box.scratch else SCRATCH_MOUNT)
