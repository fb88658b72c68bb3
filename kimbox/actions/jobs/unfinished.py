"""kimbox job recover: the results of jobs whose kimbox was killed. Their guests have ended, or still run."""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox.actions.jobs.ending import dispose, ending, write_results
from kimbox.actions.jobs.follow import follow
from kimbox.actions.jobs.request import Done, Job
from kimbox.errors import KimboxError, StateError
from kimbox.files import parse_json, read_bounded
from kimbox.jobs.record import MAX_RECORD_BYTES, RECORD
from kimbox.jobs.result import Outcome, Verdict
from kimbox.jobs.terms import Unfinished
from kimbox.log import log
from kimbox.machine.folder import Machine, machines
from kimbox.newfiles import refuse_existing


def stored() -> list[Machine]:
    """Returns the machines with an unfinished job that no process of kimbox follows."""
    return [machine for machine in machines() if machine.unfinished_job.exists() and not machine.is_locked_by_another()]


def refuse(output: Path) -> None:
    """Raises StateError (`job-unfinished`) if the results of an earlier job are to be written to `output`."""
    for machine in stored():
        try:
            is_same = Unfinished.read(machine.unfinished_job).terms.output == output.absolute()
        except KimboxError:
            continue
        if is_same:
            raise StateError(
                f"{machine.name} has an earlier job with this output, whose kimbox was killed",
                code="job-unfinished",
                hint=f"`kimbox job recover {machine.name}` writes its results, `kimbox destroy {machine.name}` "
                "discards them",
                fields={"name": machine.name, "path": str(output)},
            )


def find(name: str) -> Machine:
    """Returns a machine with an unfinished job. Raises StateError (`not-created`, `no-unfinished-job`)."""
    machine = Machine(name)
    machine.record()
    if not machine.unfinished_job.exists():
        raise StateError(
            f"{name} has no unfinished job",
            code="no-unfinished-job",
            hint="`kimbox list` shows the machines",
            fields={"name": name},
        )
    return machine


def recover(machine: Machine, output: Path | None = None) -> Done:
    """Waits for the end of a job, writes its results, and removes its machine.

    `output`: a new folder for the results; None: the one that `kimbox job run` was given. The guest is not started
    again if it has died. Raises StateError (`busy`, `file-exists`), and KimboxError (`bad-record`).
    """
    with machine.locked():
        kept = Unfinished.read(machine.unfinished_job)
        terms = kept.terms if output is None else attrs.evolve(kept.terms, output=output)
        job = Job(terms, kept.id, machine, kept.inputs, is_warm=machine.record().template is not None)
        done = _read_results(job)
        if done is None:
            refuse_existing(terms.output)
            with ending(job), log.step(f"waiting for the job {job.id}"):
                follow(job)
            done = write_results(job)
    dispose(job)
    return done


def _read_results(job: Job) -> Done | None:
    """Returns the results if the killed process has written them; None if it has not."""
    try:
        record = parse_json(read_bounded(job.terms.output / RECORD, limit_bytes=MAX_RECORD_BYTES))
        if record["id"] != job.id:
            return None
        verdict = Verdict(Outcome(record["verdict"]), record["exit"], record["signal"], record["reason"] or "")
    except (OSError, KimboxError, ValueError, KeyError, TypeError):
        return None
    return Done(verdict, job.terms.output, record)
