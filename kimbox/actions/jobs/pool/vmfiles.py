"""The files of a job in the VM universe of HTCondor: the image, and for each job a disk, which comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kimbox.actions.jobs.request import RunRequest
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.errors import StateError, UsageError
from kimbox.jobs.backends.htcondor import description
from kimbox.jobs.backends.htcondor.submission import Submission
from kimbox.jobs.disk import pack
from kimbox.jobs.disk.contents import Contents
from kimbox.jobs.order import IMAGE
from kimbox.jobs.result import MAX_STATUS_BYTES, STATUS_FILE, Report, judge_alone
from kimbox.project.plan import Plan


def check(plan: Plan, image_url: str) -> None:
    """Raises StateError (`wrong-state`) if the image does not run jobs by itself, and UsageError for a URL."""
    box = plan.box
    if image_url:
        raise UsageError(
            "--image-url is for the vanilla universe: HTCondor itself gets the image of a job in the VM universe",
            code="usage",
        )
    reason = ""
    if not box.job:
        reason = "its spec does not have `job: true`"
    elif box.repositories or box.provision or box.scratch:
        reason = "its spec has repositories, steps or scratch space, which only kimbox or its runner bring into a box"
    if reason:
        raise StateError(
            f"the box {box.name} does not run jobs in the VM universe: {reason}",
            code="wrong-state",
            hint="use the vanilla universe, or a box as `A box for jobs under another manager` in docs/jobs.md has it",
            fields={"name": box.name},
        )


def write_disks(job: RunRequest, items: Sequence[str], folder: Path) -> list[str]:
    """Writes the disk of each job. Returns the digest of each."""
    digests = []
    for process, last in enumerate([[item] for item in items] or [[]]):
        packed = pack.pack(
            job.folder,
            folder / description.job_disk(process),
            size_bytes=job.size_bytes,
            room=job.room,
            added=pack.arguments_file([*job.arguments, *last]),
        )
        digests.append(f"sha256:{packed.digest}")
    return digests


def describe(
    settings: Mapping[str, str], job: RunRequest, plan: Plan, submission_id: str, folder: Path, count: int
) -> str:
    """Returns the submit description."""
    sent = (folder / IMAGE).stat().st_size + (folder / description.job_disk(0)).stat().st_size
    wanted = description.needs(
        cpus=plan.box.cpus,
        memory_bytes=plan.box.memory_bytes,
        files_bytes=sent,
        timeout_s=job.timeout_s,
        boot_timeout_s=6 * BOOT_TIMEOUT_S,
    )
    return description.vm(wanted, submission_id, count=count, has_network=job.network.is_open, settings=settings)


def report_of(disk: Contents, submission: Submission, process: int) -> dict[str, Any]:
    """Returns the disk's own report, in the form of the runner's."""
    stored = Report.parse(disk.head(STATUS_FILE, MAX_STATUS_BYTES) or b"")
    verdict = judge_alone(stored, is_unmounted=disk.is_clean)
    return {
        "verdict": str(verdict.outcome),
        "exit": verdict.exit,
        "signal": verdict.signal,
        "reason": verdict.reason,
        "folder": submission.static["folders"][process],
        "size_bytes": disk.size_bytes,
        "memory_peak_bytes": stored.memory_peak_bytes if stored else None,
        "cpu_s": stored.cpu_s if stored else None,
    }
