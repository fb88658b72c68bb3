"""kimbox job run: runs the folder of a job in a machine of its own, and keeps the results.

The machine is a clone of the box's template for jobs, which is made at the first need, with the disk of the job in the
place of the template's. A cold one starts from the image and is provisioned. It runs the job, and is destroyed. The
disk of the job is read when the guest has ended. Whatever happens, the verdict is in job.json of the folder with the
results.
"""

from __future__ import annotations

import contextlib
import time
import uuid

import attrs

from kimbox.actions import observe, stop
from kimbox.actions.clones import template as making
from kimbox.actions.clones.clone import JobOfClone, continue_template
from kimbox.actions.jobs import provenance, results
from kimbox.actions.jobs.follow import follow, last_lines
from kimbox.actions.jobs.request import Death, Done, Job, RunRequest, Surroundings
from kimbox.actions.lifecycle.create import create
from kimbox.actions.lifecycle.handover import prepare
from kimbox.actions.lifecycle.readiness import bring_to_ready
from kimbox.actions.lifecycle.start import start
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.drivers import registry
from kimbox.drivers.base import JobStart
from kimbox.errors import GuestError, KimboxError
from kimbox.jobs import listing
from kimbox.jobs.disk import pack
from kimbox.jobs.disk.source import Source, check_folder, read_folder
from kimbox.jobs.result import Outcome, Verdict
from kimbox.log import log
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Purpose
from kimbox.newfiles import refuse_existing
from kimbox.project.plan import Plan, make_plan
from kimbox.spec.model import Box

#: Timeout of the shutdown of a guest that was interrupted, in seconds.
SHUTDOWN_TIMEOUT_S = 30.0

#: Maximum number of characters of the box's name in the name of a machine, which is the host name of the guest.
MAX_BOX_CHARACTERS = 40


def run(request: RunRequest) -> Done:
    """Runs a job and writes its results to the new folder `request.output`.

    Raises StateError (`file-exists`, `file-not-found`, `not-a-job`), UsageError, SpecError, and the errors of the image
    and of the disk. From the start of the guest on, a failure is a verdict, and not an error. So is a box that does not
    become ready.
    """
    refuse_existing(request.output)
    check_folder(request.folder)
    provenance.check_key(request.sign_key)
    plan = plan_of(request)
    if request.is_cold:
        return run_one(request, Surroundings(plan))
    with contextlib.ExitStack() as stack:
        try:
            template = stack.enter_context(making.leased(plan, timeout_s=BOOT_TIMEOUT_S, runs_jobs=True))
        except GuestError as error:
            job = _new_job(request, Surroundings(plan), None)
            job.verdict = Verdict(Outcome.HOST, reason=error.message)
            _note_folder(job, read_folder(request.folder, pack.arguments_file(request.arguments)))
            return results.write(job)
        return run_one(request, Surroundings(plan, template))


def plan_of(request: RunRequest) -> Plan:
    """Returns the plan of the machines of a request. They forward no ports, so that several jobs can run together."""
    box = request.project.box
    changed: Box = attrs.evolve(
        box,
        cpus=request.cpus or box.cpus,
        memory_bytes=request.memory_bytes or box.memory_bytes,
        scratch=request.scratch or box.scratch,
        forwards=(),
    )
    return make_plan(attrs.evolve(request.project, box=changed))


def run_one(request: RunRequest, surroundings: Surroundings) -> Done:
    """Runs a job and writes its results to `request.output`. If the guest dies, the job is started again, once."""
    ended = _attempt(request, surroundings, None)
    if isinstance(ended, Death):
        log.warn(f"the guest died ({ended.reason}): the job starts again")
        ended = _attempt(request, surroundings, ended)
    assert isinstance(ended, Done)  # noqa: S101 - a second attempt has results in any case
    return ended


def _new_job(request: RunRequest, surroundings: Surroundings, death: Death | None) -> Job:
    job_id = uuid.uuid4().hex[:12]
    name = f"{surroundings.plan.box.name[:MAX_BOX_CHARACTERS]}-{surroundings.mark}-{job_id}"
    return Job(request, job_id, Machine(name), surroundings, death=death)


def _attempt(request: RunRequest, surroundings: Surroundings, death: Death | None) -> Done | Death:
    """Runs a job in one machine. Returns its results or, if the guest of a first attempt died, how it ended.

    `death`: how the guest of the first attempt ended; None: this is the first attempt.
    """
    job = _new_job(request, surroundings, death)
    machine, is_kept = job.machine, False
    try:
        with machine.locked():
            _run_guest(job)
            if death is None and job.verdict and job.verdict.outcome is Outcome.GUEST_DIED:
                return Death(job.verdict.reason, last_lines(machine))
            done = results.write(job)
        is_kept = request.keep and done.verdict.outcome is not Outcome.OK
        return done
    finally:
        if not is_kept:
            stop.destroy(machine)
            machine.lock_file.unlink(missing_ok=True)  # no other process uses this name
        else:
            log.info(f"the machine {machine.name} is kept: `kimbox destroy {machine.name}` removes it")


def _run_guest(job: Job) -> None:
    """Starts the guest, waits until it has ended, and keeps what it reported. A failure of the box is a verdict."""
    machine = job.machine
    try:
        _start_warm(job) if job.surroundings.template else _start_cold(job)
        job.ready_at = time.monotonic()
        with contextlib.nullcontext() if job.surroundings.is_one_of_many else log.step(f"running the job {job.id}"):
            follow(job)
    except GuestError as error:
        job.verdict = Verdict(Outcome.HOST, reason=error.message)
    except KeyboardInterrupt:
        if not machine.exists:
            raise  # there is no result yet
        log.warn("interrupted: the guest shuts down, and what the job has written is kept")
        job.verdict = Verdict(Outcome.INTERRUPTED, reason="interrupted by the user")
    finally:
        job.ended_at = time.monotonic()
        _end_guest(job)


def _start_warm(job: Job) -> None:
    """Starts a clone of the template, with the job's disk in the place of the template's."""
    machine, around = job.machine, job.surroundings
    assert around.template  # noqa: S101

    def write_disk() -> None:
        _pack(job)
        machine.job_log.touch()

    clone = JobOfClone(_started(job), write_disk)
    continue_template(machine, job.plan, around.template, _purpose(job), job=clone)


def _start_cold(job: Job) -> None:
    """Starts a new machine from the image, and provisions it."""
    machine, plan = job.machine, job.plan
    create(machine, plan, purpose=_purpose(job))
    registry.need_jobs(machine)
    _pack(job)
    machine.job_log.touch()
    delivery = prepare(machine, plan, Choice())
    start(machine, plan.box, delivery=delivery, job=_started(job))
    bring_to_ready(machine, plan, timeout_s=BOOT_TIMEOUT_S, must_send=False, connects=False)


def _started(job: Job) -> JobStart:
    """Returns the start of the job. Raises KimboxError (`name-not-resolved`)."""
    network, is_one_of_many = job.request.network, job.surroundings.is_one_of_many
    return JobStart(job.id, job.request.timeout_s, network.is_open, is_one_of_many, network.resolve())


def _purpose(job: Job) -> Purpose:
    return Purpose.SWEEP if job.surroundings.is_one_of_many else Purpose.JOB


def _pack(job: Job) -> None:
    """Writes the disk of the job into the folder of its machine. Raises KimboxError (`file-changed`) in a sweep."""
    request = job.request
    packed = pack.pack(
        request.folder,
        job.machine.job_disk,
        size_bytes=request.size_bytes,
        room=request.room,
        added=pack.arguments_file(request.arguments),
    )
    _note_folder(job, packed.source)
    if (expected := job.surroundings.folder_digest) and packed.folder_digest != expected:
        raise KimboxError(
            f"{request.folder} was changed since the sweep began: its results would be those of different jobs",
            code="file-changed",
            hint="undo the change and run the same command again, or begin a new sweep with another --output",
            fields={"path": str(request.folder)},
        )


def _note_folder(job: Job, source: Source) -> None:
    """Keeps the digests of the folder of the job."""
    job.folder_digest = source.digest
    job.input = listing.of_source(source, without=[pack.ARGUMENTS])


def _end_guest(job: Job) -> None:
    """Ends the guest, if it runs. One whose user interrupted it shuts down, so that what it has written is complete."""
    machine = job.machine
    if not machine.exists:
        return
    if machine.running:
        is_orderly = job.verdict is not None and job.verdict.outcome in (Outcome.INTERRUPTED, Outcome.HOST)
        is_forced = not is_orderly or job.surroundings.stopping.is_set()
        registry.of(machine).stop(observe.state(machine), force=is_forced, timeout_s=SHUTDOWN_TIMEOUT_S)
    registry.of(machine).tidy()
    machine.write_record(attrs.evolve(machine.record(), ended=Ended.HALTED))
