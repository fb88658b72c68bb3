"""The provenance of a job: what job.json says about its inputs and results, and the signature over them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kimbox import __version__
from kimbox.actions import observe
from kimbox.actions.jobs.request import Job, RunRequest
from kimbox.files import read_bounded, sha256_file, write_atomic
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.formats import sums
from kimbox.jobs import listing
from kimbox.jobs.record import LOCK, MAX_RECORD_BYTES, RECORD
from kimbox.jobs.statement import statement
from kimbox.jobs.terms import Inputs
from kimbox.jobs.vet import OUTPUT
from kimbox.lock.lockfile import read_lock
from kimbox.lock.provenance.inputs import commits
from kimbox.project.plan import Plan

#: Names of the statement, of the checksums and of their signature among the results.
STATEMENT, CHECKSUMS, SIGNATURE = "provenance.intoto.json", sums.NAME, sums.SIGNATURE_NAME

#: The results that a signature covers besides the statement and the files in `output`.
SIGNED = (RECORD, LOCK, "run-job.log", "run-job-failure.log")

#: Maximum length of a name in the checksums, in characters (sums.parse).
_MAX_NAME = 255


def describe(job: Job, results: Path) -> dict[str, Any]:
    """Returns the part of job.json about inputs and results, and writes the lock to the folder of the results.

    The files in `output` are those that remain there: vetting has moved the others.
    """
    disk, inputs = job.machine.job_disk, job.inputs
    write_atomic(results / LOCK, inputs.lock_text)
    size_bytes = disk.stat().st_size if disk.exists() else None
    return inputs.static | {
        "settings": inputs.static["settings"] | {"size_bytes": size_bytes},
        "provenance": observe.provenance(job.machine, job.machine.boot_events()),
        "output": listing.of_folder(results / OUTPUT).as_json(),
    }


def describe_inputs(request: RunRequest, plan: Plan, files: listing.Listing, folder_digest: str) -> Inputs:
    """Returns what is known of a job before it runs. `files`: those in the folder of the job."""
    box, lock = plan.box, plan.lock
    static = {
        "kimbox": __version__,
        "box": box.name,
        "image": plan.image_key,
        "manifest": plan.digest,
        "lock": {"sha256": hashlib.sha256(lock.text.encode()).hexdigest(), "spec": lock.spec_digest},
        "commits": {name: commit for name, _, commit, _ in commits(lock)},
        "settings": {
            "cpus": box.cpus,
            "memory_bytes": box.memory_bytes,
            "scratch_bytes": box.scratch.size_bytes if box.scratch else None,
            "timeout_s": request.timeout_s,
            "network": str(request.network),
            "size_bytes": None,
        },
        "folder": f"sha256:{folder_digest}",
        "folder_name": request.folder.resolve().name,
        "input": files.as_json(),
    }
    return Inputs(static, lock.text)


def check_key(key: Path | None) -> None:
    """Raises what `sums.sign` raises, before the job runs, if a key cannot sign."""
    if key is not None:
        sums.sign(b"", key)


def sign(results: Path, key: Path) -> None:
    """Writes the statement, the checksums of all results and their signature to a folder with results."""
    record = json.loads(read_bounded(results / RECORD, limit_bytes=MAX_RECORD_BYTES))
    digests = {name: sha256_file(results / name) for name in SIGNED if (results / name).is_file()}
    for entry in listing.of_folder(results / OUTPUT).entries.values():
        name = f"{OUTPUT}/{shown(entry.path)}"
        if entry.target is None:
            digests[name] = entry.sha256
    digests = {name: digest.removeprefix("sha256:") for name, digest in digests.items()}
    write_atomic(results / STATEMENT, statement(record, read_lock(results / LOCK), digests))
    # A name that is escaped, or too long, has no line: the statement has it.
    listed = {name: digest for name, digest in digests.items() if _has_line(name)}
    listed[STATEMENT] = sha256_file(results / STATEMENT).removeprefix("sha256:")
    text = sums.text(listed)
    write_atomic(results / CHECKSUMS, text)
    write_atomic(results / SIGNATURE, sums.sign(text, key))


def _has_line(name: str) -> bool:
    return len(name) <= _MAX_NAME and name.isprintable() and "\\" not in name
