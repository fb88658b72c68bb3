"""The results of a job: the files from its disk, and job.json with the verdict."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs

from kimbox import utctime
from kimbox.actions.jobs import provenance
from kimbox.actions.jobs.follow import has_shut_down, last_lines
from kimbox.actions.jobs.request import Done, Job
from kimbox.errors import KimboxError
from kimbox.files import json_bytes
from kimbox.image.disk.ext4.directories import shown
from kimbox.jobs.disk import contents, extract
from kimbox.jobs.record import FORMAT, RECORD
from kimbox.jobs.result import MAX_STATUS_BYTES, RESULTS, STATUS_FILE, Outcome, Report, Verdict, judge
from kimbox.jobs.vet import Rejected, Vetting, vet
from kimbox.log import log
from kimbox.newfiles import making
from kimbox.sparse import copy_sparse


def write(job: Job) -> Done:
    """Reads the disk of the job, and writes the folder with the results and job.json.

    If the disk cannot be read, a copy of it is among the results.
    """
    output = job.terms.output
    stored: Report | None = None
    skipped: list[str] = []
    rejected: list[Rejected] = []
    with making(output) as work:
        target = work / output.name
        try:
            with contents.opened(job.machine.job_disk) as disk:
                stored = Report.parse(disk.head(STATUS_FILE, MAX_STATUS_BYTES) or b"")
                verdict = job.verdict or judge(
                    job.id,
                    job.reported,
                    stored,
                    is_unmounted=disk.is_clean,
                    powered_off=job.is_finished or has_shut_down(job.machine),
                )
                done = extract.extract(disk, target, only=RESULTS, skip_unsafe=True)
                skipped = [f"{shown(file.path)}: {file.unsafe}" for file in done.skipped]
            verdict, rejected = vetted(target, verdict, job.terms.vetting, job.terms.folder)
        except KimboxError as error:
            verdict = job.verdict or Verdict(Outcome.LOST, reason=error.message)
            target.mkdir(exist_ok=True)
            if job.machine.job_disk.exists():
                copy_sparse(job.machine.job_disk, target / job.machine.job_disk.name)
        record = _record(job, verdict, stored, skipped) | {"quarantine": [str(file) for file in rejected]}
        record |= provenance.describe(job, target)
        keep(target, record, job.terms.sign_key)
    return Done(verdict, output, record)


def vetted(
    results: Path, verdict: Verdict, vetting: Vetting | None, job_folder: Path
) -> tuple[Verdict, list[Rejected]]:
    """Vets the results in a folder. Returns the verdict, which may have become `quarantined`, and what was rejected."""
    rejected = vet(results, vetting, job_folder) if vetting else []
    if rejected and verdict.outcome is Outcome.OK:
        verdict = Verdict(Outcome.QUARANTINED, exit=0, reason=f"{len(rejected)} files are in quarantine")
    return verdict, rejected


def keep(results: Path, record: dict[str, Any], sign_key: Path | None) -> None:
    """Writes job.json to a folder with results, and signs them."""
    (results / RECORD).write_bytes(json_bytes(record))
    if sign_key:
        _sign(results, sign_key)


def _sign(results: Path, key: Path) -> None:
    """Signs the results. They are kept in any case: the key was tried before the job, which may have taken days."""
    try:
        provenance.sign(results, key)
    except KimboxError as error:
        log.warn(f"the results are not signed: {error.message}")


def _record(job: Job, verdict: Verdict, stored: Report | None, skipped: list[str]) -> dict[str, Any]:
    """Returns the content of job.json (schemas/job.schema.json)."""
    ended_at = job.ended_at or time.monotonic()
    is_programs_own = verdict.outcome in (Outcome.OK, Outcome.FAILED)
    console = [] if is_programs_own else last_lines(job.machine)
    return {
        "format": FORMAT,
        "id": job.id,
        "verdict": str(verdict.outcome),
        "exit": verdict.exit,
        "signal": verdict.signal,
        "status": verdict.status,
        "reason": verdict.reason or None,
        "arguments": list(job.terms.arguments),
        "ended_at": utctime.text(),
        "ready_s": None if job.ready_at is None else round(job.ready_at - job.began_at, 3),
        "run_s": None if job.ready_at is None else round(ended_at - job.ready_at, 3),
        "memory_peak_bytes": stored.memory_peak_bytes if stored else None,
        "cpu_s": stored.cpu_s if stored else None,
        "skipped": skipped,
        "console": console,
        "start": "template" if job.is_warm else "cold",
        "restarted": attrs.asdict(job.death) if job.death else None,
    }
