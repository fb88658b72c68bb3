"""kimbox job run: runs the folder of a job in a machine of its own, and keeps the results.

The machine starts from the image of the box, is provisioned, runs the job, and is destroyed. The disk of the job is
read when the guest has ended. Whatever happens, the verdict is in job.json of the folder with the results.
"""

from __future__ import annotations

import os
import time
import uuid

import attrs

from kimbox.actions import observe, stop
from kimbox.actions.jobs import results
from kimbox.actions.jobs.request import Done, Job, RunRequest
from kimbox.actions.lifecycle.create import create
from kimbox.actions.lifecycle.handover import prepare
from kimbox.actions.lifecycle.readiness import bring_to_ready
from kimbox.actions.lifecycle.start import start
from kimbox.actions.progress import Output
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.drivers import registry
from kimbox.drivers.base import JobStart
from kimbox.errors import GuestError, StateError, UsageError
from kimbox.guest.events import Tail
from kimbox.jobs.disk import pack
from kimbox.jobs.disk.source import check_folder
from kimbox.jobs.result import Outcome, Report, Verdict
from kimbox.log import log
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Purpose
from kimbox.project.plan import make_plan
from kimbox.spec.model import Box

#: Time from the time limit of the program until the guest must have powered off, in seconds.
END_MARGIN_S = 120.0

#: Timeout of the shutdown of a guest that was interrupted, in seconds.
SHUTDOWN_TIMEOUT_S = 30.0

#: Maximum number of characters of the box's name in the name of a machine, which is the host name of the guest.
MAX_BOX_CHARACTERS = 40

#: Name of the file on the disk with the arguments of the program, and of the event of a job.
ARGUMENTS, EVENT = b"run-job.args", "job"

#: Interval between two reads of events and output, in seconds.
POLL_INTERVAL_S = 0.05


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
    job = Job(request, job_id, machine, plan)
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
            done = results.write(job)
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


def _run_guest(job: Job) -> None:
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


def _follow(job: Job) -> None:
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
