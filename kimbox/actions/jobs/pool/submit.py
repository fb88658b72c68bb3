"""kimbox job submit: gives the folder of a job to a pool of HTCondor.

The nodes get a runner (kimbox/node), the image of the box, the disk with its manifest, and the folder of the job. They
boot the box as `kimbox job run --cold` does. All of it is in one folder, which `condor_submit` takes, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from kimbox import paths, utctime
from kimbox.actions.jobs.pool import vmfiles
from kimbox.actions.jobs.pool.start import portable_command
from kimbox.actions.jobs.provenance import describe_inputs
from kimbox.actions.jobs.request import RunRequest
from kimbox.actions.jobs.run import plan_of
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.errors import KimboxError, UsageError
from kimbox.files import locked, sha256_file, write_atomic
from kimbox.guest.delivery import write_disk
from kimbox.image import obtain
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.formats.boxwriter import QCOW2, convert
from kimbox.image.store.images import Image
from kimbox.jobs import listing
from kimbox.jobs.backends.htcondor import description
from kimbox.jobs.backends.htcondor.bindings import Schedd, require, variables
from kimbox.jobs.backends.htcondor.submission import VANILLA, VM, Submission, new_id
from kimbox.jobs.backends.runner import runner
from kimbox.jobs.disk import contents, pack
from kimbox.jobs.items import Item
from kimbox.jobs.order import BASE, DELIVERY, IMAGE, ORDER, Order
from kimbox.jobs.record import FORMAT, LOCK
from kimbox.jobs.vet import OUTPUT
from kimbox.log import log
from kimbox.newfiles import making, refuse_existing
from kimbox.project.plan import Plan
from kimbox.run import require as require_program
from kimbox.run import run
from kimbox.sparse import copy_sparse
from kimbox.temporary import temporary_folder

#: Timeout of a boot on a node, in seconds: it provisions the box under emulation, beside other jobs.
NODE_BOOT_TIMEOUT_S = 6 * BOOT_TIMEOUT_S


@attrs.frozen
class SubmitRequest:
    """The arguments of `job submit`. `job`: as for `job run`; its output is where `job fetch` writes the results."""

    job: RunRequest
    items: list[Item] | None = None
    schedd: Schedd = attrs.field(factory=Schedd)
    #: Keys of the submit description, which replace those of kimbox.
    settings: Mapping[str, str] = attrs.field(factory=dict)
    #: Where the nodes get the image; empty: it is sent with each job.
    image_url: str = ""
    #: HTCondor boots the box itself, in its VM universe, and the box runs the job.
    is_vm: bool = False


def submit(request: SubmitRequest) -> Submission:
    """Writes the files of a job, and submits it. Returns the submission with its cluster.

    Raises the errors of `write`, MissingToolError, and KimboxError (`pool-unreachable`). Then nothing is left.
    """
    require()
    submission = write(request, None)
    with log.step(f"submitting {submission.count} jobs"), locked(submission.lock_file):
        submission = attrs.evolve(submission, cluster=submission.schedd.submit(submission.folder))
        submission.write()
    return submission


def write(request: SubmitRequest, folder: Path | None) -> Submission:
    """Writes the files of a job to a new folder, without submitting it. None: a folder of kimbox.

    Raises StateError (`file-exists`, `not-a-job`), UsageError, SpecError, and the errors of the image and the disk.
    """
    job, submission_id = request.job, new_id()
    target = folder or paths.submissions_dir() / submission_id
    refuse_existing(target)
    if request.items is None:
        refuse_existing(job.output)
    if job.network.targets:
        raise UsageError(
            "--network with servers is for this host: the nodes of a pool cannot limit a job to them",
            code="bad-value",
            hint="--network none or --network outbound",
            fields={"option": "--network"},
        )
    plan = plan_of(job)
    if request.is_vm:
        vmfiles.check(plan, request.image_url)
    with making(target) as work:
        new = work / target.name
        new.mkdir(mode=0o755)
        static, facts, text = _write_files(request, plan, new, submission_id)
        submission = Submission(
            new,
            submission_id,
            utctime.text(),
            job.folder.resolve(),
            job.output.absolute(),
            None if request.items is None else tuple(item.text for item in request.items),
            facts,
            static,
            VM if request.is_vm else VANILLA,
            job.vetting,
            schedd=request.schedd,
        )
        (new / description.DESCRIPTION).write_text(text)
        submission.write()
    return attrs.evolve(submission, folder=target)


def _write_files(
    request: SubmitRequest, plan: Plan, folder: Path, submission_id: str
) -> tuple[dict[str, object], dict[str, object], str]:
    """Writes what the nodes get. Returns the known part of job.json, the facts of a sweep, and the description."""
    job = request.job
    with log.step("packing the folder of the job"):
        packed = pack.pack(job.folder, folder / BASE, room=pack.Room(size_bytes=0))
        _check(folder / BASE, job.folder)
        files = listing.of_source(packed.source)
    with obtain.leased(plan.box, plan.recipe, offline=plan.project.offline) as image:
        sha256 = _place_image(image, folder / IMAGE)
    if request.is_vm:
        digests = vmfiles.write_disks(job, [item.text for item in request.items or []], folder)
        more: dict[str, object] = {"folders": digests}
        text = vmfiles.describe(request.settings, job, plan, submission_id, folder, len(digests))
    else:
        order, more = _write_order(request, plan, image, sha256, folder), {}
        text = _description(request, plan, submission_id, order, folder)
    described = json.loads(plan.manifest["box.json"][0])
    inputs = describe_inputs(job, plan, files, packed.folder_digest)
    write_atomic(folder / LOCK, inputs.lock_text)
    static = {"format": FORMAT, "described": described, **more, **inputs.static}
    facts: dict[str, object] = {
        "folder": inputs.static["folder"],
        "arguments": list(job.arguments),
        "box": plan.box.name,
        "image": plan.image_key,
        "manifest": plan.digest,
    }
    return static, facts, text


def _write_order(request: SubmitRequest, plan: Plan, image: Image, sha256: str, folder: Path) -> Order:
    """Writes the disk with the manifest, the runner, its order, and the items. Returns the order."""
    job = request.job
    with log.step("preparing the manifest and its commits"):
        delivery = write_disk(plan.payload, set(), folder / DELIVERY)
        (folder / DELIVERY).chmod(0o644)
    image_bytes = (folder / IMAGE).stat().st_size
    info = job.folder.stat()
    room = job.room
    order = Order(
        portable_command(plan, job, delivery),
        list(job.arguments),
        sha256,
        image_bytes,
        max(plan.box.disk.size_bytes, image.virtual_bytes),
        request.image_url,
        has_delivery=True,
        folder_mode=info.st_mode & 0o777,
        folder_modified_ns=info.st_mtime_ns,
        has_output=(job.folder / OUTPUT).exists(),
        scratch_bytes=plan.box.scratch.size_bytes if plan.box.scratch else None,
        size_bytes=job.size_bytes,
        room_percent=str(room.percent) if room and room.size_bytes is None else None,
        room_bytes=room.size_bytes if room else None,
        timeout_s=job.timeout_s,
        boot_timeout_s=NODE_BOOT_TIMEOUT_S,
    )
    (folder / ORDER).write_bytes(order.as_bytes())
    (folder / description.RUNNER).write_bytes(runner())
    (folder / description.RUNNER).chmod(0o755)
    if request.items is not None:
        lines = (os.fsencode(item.text).hex() for item in request.items)
        (folder / description.ITEMS).write_text("".join(f"{line}\n" for line in lines))
    return order


def _check(base: Path, folder: Path) -> None:
    """Raises KimboxError (`unsafe-files`) if the folder has links that lead out: a node does not create them."""
    with contents.opened(base) as disk:
        if unsafe := disk.unsafe:
            raise KimboxError(
                f"{folder} has {len(unsafe)} symbolic links that lead out of it, such as {shown(unsafe[0].path)}",
                code="unsafe-files",
                hint="let run-job create them in the guest",
                fields={"path": shown(unsafe[0].path)},
            )


def _place_image(image: Image, target: Path) -> str:
    """Writes the image as a compressed qcow2, which is made once. Returns its sha256."""
    kept = paths.submissions_dir() / "images" / f"{image.key}.qcow2"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(kept.with_suffix(".lock"), wait_s=-1):
        if not kept.exists():
            with log.step("compressing the image"), making(kept) as work:
                convert(image.disk, image.format, work / kept.name, QCOW2)
        try:
            os.link(kept, target)
        except OSError:  # another file system
            copy_sparse(kept, target)
        with log.step("reading the image"):
            return sha256_file(target).removeprefix("sha256:")


def _description(request: SubmitRequest, plan: Plan, submission_id: str, order: Order, folder: Path) -> str:
    """Returns the submit description."""
    sent = [BASE, DELIVERY, IMAGE]
    job_bytes = request.job.size_bytes or 4 * (folder / BASE).stat().st_size + (order.room_bytes or 0)
    files_bytes = sum((folder / name).stat().st_size for name in sent) + job_bytes + (order.scratch_bytes or 0)
    wanted = description.needs(
        cpus=plan.box.cpus,
        memory_bytes=plan.box.memory_bytes,
        files_bytes=files_bytes,
        timeout_s=request.job.timeout_s,
        boot_timeout_s=NODE_BOOT_TIMEOUT_S,
    )
    return description.vanilla(
        wanted,
        submission_id,
        has_delivery=order.has_delivery,
        has_image=not request.image_url,
        has_items=request.items is not None,
        settings=request.settings,
    )


def dry_run(request: SubmitRequest) -> str:
    """Has condor_submit check the description, and submits nothing. Returns its warnings.

    Raises the errors of `write`, MissingToolError, and CommandError (`command-failed`) with its words.
    """
    require_program("condor_submit", "it checks the job")
    with temporary_folder("kimbox-dry-run-") as folder:
        written = write(request, folder / "submission")
        command = ["condor_submit", "-dry-run", "/dev/null", description.DESCRIPTION]
        done = run(command, cwd=written.folder, env=variables())
    return "\n".join(line for line in done.stderr.splitlines() if line.startswith("WARNING"))
