"""kimbox job run: runs the folder of a job in a machine of its own, and keeps the results.

The machine starts from the image of the box, is provisioned, runs the job, and is destroyed. The disk of the job is
read when the guest has ended. Whatever happens, the verdict is in job.json of the folder with the results.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import attrs

from kimbox import utctime
from kimbox.actions import observe, stop
from kimbox.actions.lifecycle.create import create
from kimbox.actions.lifecycle.handover import prepare
from kimbox.actions.lifecycle.readiness import bring_to_ready
from kimbox.actions.lifecycle.start import start
from kimbox.actions.progress import Output
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.drivers import registry
from kimbox.drivers.base import SHUTDOWN_BYTES, SHUTDOWN_LINES, JobStart
from kimbox.errors import GuestError, KimboxError, StateError, UsageError
from kimbox.files import copy_sparse, json_bytes
from kimbox.guest.events import Tail
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.formats.boxwriter import making
from kimbox.jobs.disk import contents, extract, pack
from kimbox.jobs.disk.pack import Room
from kimbox.jobs.disk.source import check_folder
from kimbox.jobs.result import MAX_STATUS_BYTES, STATUS_FILE, Outcome, Report, Verdict, judge
from kimbox.jobs.vet import Rejected, Vetting, vet
from kimbox.log import log
from kimbox.machine.bootmode import Choice
from kimbox.machine.console import CONSOLE_BYTES, SHOWN_LINES, console_lines
from kimbox.machine.folder import Machine, read_end
from kimbox.machine.record import Ended, Purpose
from kimbox.project.plan import Plan, make_plan
from kimbox.project.project import Project
from kimbox.spec.model import Box, Scratch

#: What is extracted from the disk. Everything else on it is discarded.
RESULTS = ("output", "run-job.log", "run-job-failure.log")

#: Time from the time limit of the program until the guest must have powered off, in seconds.
END_MARGIN_S = 120.0

#: Timeout of the shutdown of a guest that was interrupted, in seconds.
SHUTDOWN_TIMEOUT_S = 30.0

#: Maximum number of characters of the box's name in the name of a machine, which is the host name of the guest.
MAX_BOX_CHARACTERS = 40

#: Name of the file on the disk with the arguments of the program, of the event of a job, and of the record.
ARGUMENTS, EVENT, RECORD = b"run-job.args", "job", "job.json"

#: Interval between two reads of events and output, in seconds.
POLL_INTERVAL_S = 0.05

#: Version of job.json.
FORMAT = 1


@attrs.frozen
class RunRequest:
    """The arguments of `job run`. Numbers that are None are those of the spec."""

    project: Project
    folder: Path
    output: Path
    arguments: tuple[str, ...] = ()
    cpus: int | None = None
    memory_bytes: int | None = None
    scratch: Scratch | None = None
    size_bytes: int | None = None
    room: Room | None = None
    #: Limit on the program, in seconds; None: there is none.
    timeout_s: int | None = None
    has_network: bool = False
    #: What results must be like; None: everything passes.
    vetting: Vetting | None = None
    #: Keep the machine of a job that was not ok, halted, so that its disk can be looked at.
    keep: bool = False


@attrs.frozen
class Done:
    """A job that has ended. `record` is the content of job.json."""

    verdict: Verdict
    output: Path
    record: dict[str, Any]


@attrs.define
class _Job:
    """A job that runs. Times are those of time.monotonic(); `began_at` is that of the whole command."""

    request: RunRequest
    id: str
    machine: Machine
    plan: Plan
    began_at: float = attrs.field(factory=time.monotonic)
    ready_at: float | None = None
    ended_at: float | None = None
    folder_digest: str = ""
    reported: Report | None = None
    #: The verdict of the host, where it does not depend on the reports of the guest.
    verdict: Verdict | None = None


def run(request: RunRequest) -> Done:
    """Runs a job and writes its results to the new folder `request.output`.

    Raises StateError (`file-exists`, `file-not-found`, `not-a-job`), UsageError, SpecError, and the errors of the image
    and of the disk. From the start of the guest on, a failure is a verdict, and not an error.
    """
    if os.path.lexists(request.output):
        raise StateError(
            f"{request.output} already exists",
            code="file-exists",
            hint="name a new folder with --output",
            fields={"path": str(request.output)},
        )
    check_folder(request.folder)
    plan = make_plan(attrs.evolve(request.project, box=_box(request)))
    job_id = uuid.uuid4().hex[:12]
    machine = Machine(f"{plan.box.name[:MAX_BOX_CHARACTERS]}-job-{job_id}")
    job = _Job(request, job_id, machine, plan)
    is_kept = False
    try:
        with machine.locked():
            create(machine, plan, purpose=Purpose.JOB)
            registry.need_jobs(machine)
            packed = pack.pack(
                request.folder,
                machine.job_disk,
                size_bytes=request.size_bytes,
                room=request.room,
                added={ARGUMENTS: _lines(request.arguments)} if request.arguments else None,
            )
            job.folder_digest = packed.digest
            _run_guest(job)
            done = _write_results(job)
        is_kept = request.keep and done.verdict.outcome is not Outcome.OK
    finally:
        if not is_kept:
            stop.destroy(machine)
            machine.lock_file.unlink(missing_ok=True)  # no other process uses this name
    if is_kept:
        log.info(f"the machine {machine.name} is kept: `kimbox destroy {machine.name}` removes it")
    return done


def _box(request: RunRequest) -> Box:
    """Returns the box with the shape of the request. It forwards no ports, so that several jobs can run together."""
    box = request.project.box
    return attrs.evolve(
        box,
        cpus=request.cpus or box.cpus,
        memory_bytes=request.memory_bytes or box.memory_bytes,
        scratch=request.scratch or box.scratch,
        forwards=(),
    )


def _lines(arguments: tuple[str, ...]) -> bytes:
    """Returns the arguments as the guest reads them: one in each line. Raises UsageError if one has a line break."""
    if any("\n" in argument for argument in arguments):
        raise UsageError("an argument of the program has a line break", code="usage")
    return "".join(f"{argument}\n" for argument in arguments).encode(errors="surrogateescape")


def _run_guest(job: _Job) -> None:
    """Starts the guest, waits until it has ended, and keeps what it reported. A failure of the box is a verdict."""
    machine, box = job.machine, job.plan.box
    machine.job_log.touch()
    try:
        delivery = prepare(machine, job.plan, Choice())
        started = JobStart(job.id, job.request.timeout_s, job.request.has_network)
        start(machine, box, delivery=delivery, job=started)
        bring_to_ready(machine, job.plan, timeout_s=BOOT_TIMEOUT_S, must_send=False, connects=False)
        job.ready_at = time.monotonic()
        with log.step(f"running the job {job.id}"):
            _follow(job)
    except GuestError as error:
        job.verdict = Verdict(Outcome.HOST, reason=error.message)
    except KeyboardInterrupt:
        log.warn("interrupted: the guest shuts down, and what the job has written is kept")
        job.verdict = Verdict(Outcome.INTERRUPTED, reason="interrupted by the user")
    finally:
        job.ended_at = time.monotonic()
        if machine.running:
            is_hung = job.verdict is None or job.verdict.outcome is Outcome.TIMEOUT
            registry.of(machine).stop(observe.state(machine), force=is_hung, timeout_s=SHUTDOWN_TIMEOUT_S)
        registry.of(machine).tidy()
        machine.write_record(attrs.evolve(machine.record(), ended=Ended.HALTED))


def _follow(job: _Job) -> None:
    """Shows the output of the job and reads its events until the guest has ended, or exceeds the time limit."""
    driver, limit_s = registry.of(job.machine), job.request.timeout_s
    events, output = Tail(job.machine.events_file), Output(job.machine.job_log)
    deadline = None if limit_s is None else time.monotonic() + limit_s + END_MARGIN_S
    while True:
        is_alive = driver.listen()
        while new := events.read():
            for event in new:
                if event.name == EVENT and event.text("id") == job.id and event.text("status") != "started":
                    job.reported = Report.from_event(event)
        while output.show_new(log.guest):
            pass
        if not is_alive:
            return
        if deadline is not None and time.monotonic() > deadline:
            job.verdict = Verdict(Outcome.TIMEOUT, reason=f"the guest did not end the program after {limit_s} s")
            return
        log.now("waiting for the end of the job")
        time.sleep(POLL_INTERVAL_S)


def _write_results(job: _Job) -> Done:
    """Reads the disk of the job, and writes the folder with the results and job.json.

    If the disk cannot be read, a copy of it is among the results.
    """
    output = job.request.output
    stored: Report | None = None
    skipped: list[str] = []
    rejected: list[Rejected] = []
    with making(output) as work:
        target = work / output.name
        try:
            with contents.opened(job.machine.job_disk) as disk:
                stored = Report.parse(disk.head(STATUS_FILE, MAX_STATUS_BYTES) or b"")
                verdict = job.verdict or judge(
                    job.id, job.reported, stored, is_unmounted=disk.is_clean, powered_off=_has_shut_down(job.machine)
                )
                done = extract.extract(disk, target, only=RESULTS, skip_unsafe=True)
                skipped = [f"{shown(file.path)}: {file.unsafe}" for file in done.skipped]
            if job.request.vetting:
                rejected = vet(target, job.request.vetting, job.request.folder)
            if rejected and verdict.outcome is Outcome.OK:
                verdict = Verdict(Outcome.QUARANTINED, exit=0, reason=f"{len(rejected)} files are in quarantine")
        except KimboxError as error:
            verdict = job.verdict or Verdict(Outcome.LOST, reason=error.message)
            target.mkdir(exist_ok=True)
            copy_sparse(job.machine.job_disk, target / job.machine.job_disk.name)
        record = _record(job, verdict, stored, skipped) | {"quarantine": [str(file) for file in rejected]}
        (target / RECORD).write_bytes(json_bytes(record))
    return Done(verdict, output, record)


def _has_shut_down(machine: Machine) -> bool:
    """Whether the console ends with the last line of a shutdown."""
    end = read_end(machine.serial_log, SHUTDOWN_BYTES)
    return any(line in end for line in SHUTDOWN_LINES)


def _record(job: _Job, verdict: Verdict, stored: Report | None, skipped: list[str]) -> dict[str, Any]:
    """Returns the content of job.json (schemas/job.schema.json)."""
    ended_at = job.ended_at or time.monotonic()
    is_programs_own = verdict.outcome in (Outcome.OK, Outcome.FAILED)
    console = [] if is_programs_own else console_lines(read_end(job.machine.serial_log, CONSOLE_BYTES))[-SHOWN_LINES:]
    return {
        "format": FORMAT,
        "id": job.id,
        "verdict": str(verdict.outcome),
        "exit": verdict.exit,
        "signal": verdict.signal,
        "status": verdict.status,
        "reason": verdict.reason or None,
        "arguments": list(job.request.arguments),
        "box": job.plan.box.name,
        "image": job.plan.image_key,
        "manifest": job.plan.digest,
        "folder": f"sha256:{job.folder_digest}",
        "ended_at": utctime.text(),
        "ready_s": None if job.ready_at is None else round(job.ready_at - job.began_at, 3),
        "run_s": None if job.ready_at is None else round(ended_at - job.ready_at, 3),
        "memory_peak_bytes": stored.memory_peak_bytes if stored else None,
        "cpu_s": stored.cpu_s if stored else None,
        "skipped": skipped,
        "console": console,
    }
