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

from kimbox.actions.clones import template as making
from kimbox.actions.clones.clone import JobOfClone, continue_template
from kimbox.actions.jobs import provenance, results, unfinished
from kimbox.actions.jobs.ending import dispose, ending, write_results
from kimbox.actions.jobs.follow import follow, last_lines
from kimbox.actions.jobs.provenance import describe_inputs
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
from kimbox.jobs.terms import Unfinished
from kimbox.log import log
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose
from kimbox.newfiles import refuse_existing
from kimbox.project.plan import Plan, make_plan
from kimbox.spec.model import Box

#: Maximum number of characters of the box's name in the name of a machine, which is the host name of the guest.
MAX_BOX_CHARACTERS = 40


def run(request: RunRequest) -> Done:
    """Runs a job and writes its results to the new folder `request.output`.

    Raises StateError (`file-exists`, `file-not-found`, `job-unfinished`, `not-a-job`), UsageError, SpecError, and the
    errors of the image and of the disk. From the start of the guest on, a failure is a verdict, and not an error. So is
    a box that does not become ready.
    """
    refuse_existing(request.output)
    unfinished.refuse(request.output)
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
            _note_folder(job, request, plan, read_folder(request.folder, pack.arguments_file(request.arguments)))
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


def _new_job(request: RunRequest, around: Surroundings, death: Death | None) -> Job:
    job_id = uuid.uuid4().hex[:12]
    return Job(
        request.terms,
        job_id,
        Machine(f"{around.plan.box.name[:MAX_BOX_CHARACTERS]}-{around.mark}-{job_id}"),
        describe_inputs(request, around.plan, listing.Listing({}), ""),
        is_warm=around.template is not None,
        is_one_of_many=around.is_one_of_many,
        stopping=around.stopping,
        death=death,
    )


def _attempt(request: RunRequest, around: Surroundings, death: Death | None) -> Done | Death:
    """Runs a job in one machine. Returns its results or, if the guest of a first attempt died, how it ended.

    `death`: how the guest of the first attempt ended; None: this is the first attempt.
    """
    job = _new_job(request, around, death)
    try:
        with job.machine.locked():
            with ending(job):
                _start(job, request, around)
                job.ready_at = time.monotonic()
                with contextlib.nullcontext() if job.is_one_of_many else log.step(f"running the job {job.id}"):
                    follow(job)
            if death is None and job.verdict and job.verdict.outcome is Outcome.GUEST_DIED:
                return Death(job.verdict.reason, last_lines(job.machine))
            return write_results(job)
    finally:
        dispose(job)


def _start(job: Job, request: RunRequest, around: Surroundings) -> None:
    """Starts the machine of a job: a clone of the template, or a new one from the image, which is provisioned."""
    machine, plan = job.machine, around.plan
    purpose = Purpose.SWEEP if around.is_one_of_many else Purpose.JOB
    network = request.network
    started = JobStart(job.id, request.timeout_s, network.is_open, around.is_one_of_many, network.resolve())

    def write_disk() -> None:
        _pack(job, request, around)
        machine.job_log.touch()
        if not around.is_one_of_many:  # the next start of a sweep does the item again
            Unfinished(job.id, job.terms, job.inputs).write(machine.unfinished_job)

    if around.template:
        continue_template(machine, plan, around.template, purpose, job=JobOfClone(started, write_disk))
        return
    create(machine, plan, purpose=purpose)
    registry.need_jobs(machine)
    write_disk()
    delivery = prepare(machine, plan, Choice())
    start(machine, plan.box, delivery=delivery, job=started)
    bring_to_ready(machine, plan, timeout_s=BOOT_TIMEOUT_S, must_send=False, connects=False)


def _pack(job: Job, request: RunRequest, around: Surroundings) -> None:
    """Writes the disk of the job into the folder of its machine. Raises KimboxError (`file-changed`) in a sweep."""
    packed = pack.pack(
        request.folder,
        job.machine.job_disk,
        size_bytes=request.size_bytes,
        room=request.room,
        added=pack.arguments_file(request.arguments),
    )
    _note_folder(job, request, around.plan, packed.source)
    if around.folder_digest and packed.folder_digest != around.folder_digest:
        raise KimboxError(
            f"{request.folder} was changed since the sweep began: its results would be those of different jobs",
            code="file-changed",
            hint="undo the change and run the same command again, or begin a new sweep with another --output",
            fields={"path": str(request.folder)},
        )


def _note_folder(job: Job, request: RunRequest, plan: Plan, source: Source) -> None:
    """Keeps the digests of the folder of the job."""
    files = listing.of_source(source, without=[pack.ARGUMENTS])
    job.inputs = describe_inputs(request, plan, files, source.digest)
