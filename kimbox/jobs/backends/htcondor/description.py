"""The submit description of a job for HTCondor (condor_submit(1)). Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from kimbox.errors import UsageError
from kimbox.jobs.capacity import OVERHEAD_BYTES
from kimbox.jobs.heartbeat import END_MARGIN_S
from kimbox.jobs.order import BASE, DELIVERY, IMAGE, ORDER, RESULTS
from kimbox.jobs.result import INFRASTRUCTURE_STATUS, Outcome
from kimbox.spec.schema import guess

#: Names of files beside the description: the runner, the items as hex digits, the event log of HTCondor.
DESCRIPTION, RUNNER, ITEMS, EVENT_LOG = "job.sub", "runner.pyz", "items.txt", "events.log"

#: The attribute of each job with the id of its submission.
MARK = "KimboxSubmission"

#: The attribute of a node that has booted a guest (nodeconfig.py). A node without it is not known to fail.
CAPABLE = "HasKimboxVM"

#: How often a job is run again if the infrastructure has failed.
MAX_RETRIES = 2

#: Time for which a job that has failed is not run on the same node again, in seconds. HTCondor would give it to a node
#: that fails at once, because that one is free first. A pool of one node then runs it again.
ELSEWHERE_S = 600

#: Space on the node for what a guest changes on its disk, in bytes.
CHANGES_BYTES = 2 << 30

#: Keys of condor_submit that a user may set, with what they are for. HTCondor takes every other key without a word: a
#: typo such as `request_memroy` becomes a resource of that name.
ALLOWED_KEYS = (
    "accounting_group", "accounting_group_user", "batch_name", "concurrency_limits", "deferral_time", "description",
    "email_attributes", "job_lease_duration", "keep_claim_idle", "max_idle", "max_materialize", "max_retries",
    "nice_user", "notification", "notify_user", "periodic_hold", "periodic_release", "periodic_remove", "priority",
    "rank", "request_cpus", "request_disk", "request_memory", "requirements", "use_oauth_services",
)  # fmt: skip

_MIB = 1 << 20


@attrs.frozen
class Needs:
    """What a job needs of a node. `execute_s`: limit on a run, with its boot; None: there is none."""

    cpus: int
    memory_bytes: int
    disk_bytes: int
    execute_s: int | None


def needs(*, cpus: int, memory_bytes: int, files_bytes: int, timeout_s: int | None, boot_timeout_s: float) -> Needs:
    """Returns what a job needs: the machine of the box, QEMU around it, its files, and what the guest changes."""
    execute_s = None if timeout_s is None else int(timeout_s + boot_timeout_s + END_MARGIN_S)
    return Needs(cpus, memory_bytes + OVERHEAD_BYTES, files_bytes + CHANGES_BYTES, execute_s)


def parse_settings(settings: list[str]) -> dict[str, str]:
    """Returns key -> value of settings `KEY=VALUE`. A key that begins with `+` becomes an attribute of the job.

    Raises UsageError: `unknown-submit-key`, or `bad-value`.
    """
    found: dict[str, str] = {}
    for setting in settings:
        key, separator, value = (part.strip() for part in setting.partition("="))
        if not separator or not value or any(not character.isprintable() for character in setting):
            raise UsageError(
                f"--set: {setting[:60]!r} is not KEY=VALUE", code="bad-value", fields={"option": "--set"},
                hint="for example --set accounting_group=physics",
            )  # fmt: skip
        is_attribute = key.startswith("+") and key[1:].isidentifier() and key.isascii()
        if key.lower() not in ALLOWED_KEYS and not is_attribute:
            raise UsageError(
                f"--set: {key[:40]!r} is not a key of HTCondor's submit description that kimbox passes on",
                code="unknown-submit-key",
                hint=guess(key, list(ALLOWED_KEYS)),
                fields={"key": key},
            )
        found[key if is_attribute else key.lower()] = value
    return found


def vanilla(
    job: Needs, submission_id: str, *, has_delivery: bool, has_image: bool, has_items: bool, settings: Mapping[str, str]
) -> str:
    """Returns the description of a job in the vanilla universe: the runner boots the box on the node.

    `has_image`: the image is sent with the job; else the runner gets it. `settings` replace what kimbox has chosen.
    """
    files = [ORDER, BASE, *([DELIVERY] if has_delivery else []), *([IMAGE] if has_image else [])]
    lowest, highest = INFRASTRUCTURE_STATUS[Outcome.TIMEOUT], max(INFRASTRUCTURE_STATUS.values())
    keys = {
        "universe": "vanilla",
        "executable": RUNNER,
        "arguments": f"{ORDER} $(item)" if has_items else ORDER,
        **_of_files(files, RESULTS),
        **_of_needs(job),
        # A status of 121 to 125 is that of the infrastructure, as a signal is. Every other one is the program's own.
        "max_retries": str(MAX_RETRIES),
        "retry_until": f"(ExitBySignal =?= false) && (ExitCode < {lowest} || ExitCode > {highest})",
        # A job that was evicted has not failed: its number of completions is 0.
        "requirements": f"(TARGET.{CAPABLE} =!= false) && ((NumJobCompletions > 0) =!= true || "
        f"TARGET.Machine =!= MachineAttrMachine0 || time() - EnteredCurrentStatus > {ELSEWHERE_S})",
        "job_machine_attrs": "Machine",
        f"+{MARK}": f'"{submission_id}"',
    }
    return _text(keys | dict(settings), f"item from {ITEMS}" if has_items else "")


def vm(job: Needs, submission_id: str, *, count: int, has_network: bool, settings: Mapping[str, str]) -> str:
    """Returns the description of a job in the VM universe: HTCondor boots the image, and the box runs the job.

    One disk comes back, that of the job; what the guest has changed on the image is discarded.
    """
    disk = job_disk("$(Process)")
    keys = {
        "universe": "vm",
        "executable": "kimbox-job",  # only a label in condor_q
        "vm_type": "kvm",
        "vm_memory": str(-(-(job.memory_bytes - OVERHEAD_BYTES) // _MIB)),
        "vm_networking": str(has_network).lower(),
        "vm_no_output_vm": "false",
        "vm_disk": f"{IMAGE}:vda:w:qcow2,{disk}:vdb:w:raw",
        "transfer_input_files": f"{IMAGE}, {disk}",
        "transfer_output_files": disk,
        "transfer_output_remaps": f'"{disk} = {result_file("$(Process)")}"',
        "log": EVENT_LOG,
        **{key: value for key, value in _of_needs(job).items() if not key.endswith("_memory")},
        f"+{MARK}": f'"{submission_id}"',
    }
    return _text(keys | dict(settings), str(count) if count > 1 else "")


def job_disk(process: int | str) -> str:
    """Returns the name of the disk of a job in the VM universe."""
    return f"job.{process}.raw"


def _of_files(files: list[str], result: str) -> dict[str, str]:
    return {
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "transfer_input_files": ", ".join(files),
        "transfer_output_files": result,
        "transfer_output_remaps": f'"{result} = {result_file("$(Process)")}"',
        "output": "runner.$(Process).out",
        "error": "runner.$(Process).err",
        "log": EVENT_LOG,
    }


def _of_needs(job: Needs) -> dict[str, str]:
    memory_mib = -(-job.memory_bytes // _MIB)
    keys = {
        "request_cpus": str(job.cpus),
        "request_memory": f"{memory_mib}M",
        "retry_request_memory": f"{memory_mib * 3 // 2}M",
        "request_disk": f"{-(-job.disk_bytes // 1024)}K",
    }
    return keys if job.execute_s is None else keys | {"allowed_execute_duration": str(job.execute_s)}


def _text(keys: Mapping[str, str], queue: str) -> str:
    head = f"# Written by kimbox. In this folder, `condor_submit {DESCRIPTION}` submits it.\n"
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f"{head}{lines}queue {queue}".rstrip() + "\n"


def result_file(process: int | str) -> str:
    """Returns the name of the file with the results of a job of the cluster."""
    name, _, ending = RESULTS.rpartition(".")
    return f"{name}.{process}.{ending}"
