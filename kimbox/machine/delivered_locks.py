"""The locks of the manifests that the host sent to a machine, and the lock that the machine runs.

The host keeps the lock of each manifest. The guest reports the digest of the manifest that it runs.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from kimbox.errors import StateError
from kimbox.files import write_atomic
from kimbox.lock.lockfile import Lock, read_lock, write_lock
from kimbox.machine.folder import Machine
from kimbox.machine.state import last_manifest_event, sent_manifest

_DIGEST = re.compile(r"[0-9a-f]{64}")


def keep(machine: Machine, digest: str, lock: Lock, described: bytes = b"") -> None:
    """Writes the lock of a manifest that will be sent, and removes the locks that the box cannot return to.

    `digest` is the manifest's, `described` is its box.json.
    """
    machine.locks.mkdir(exist_ok=True)
    write_lock(_file(machine, digest), lock)
    if described:
        write_atomic(_file(machine, digest).with_suffix(".json"), described)
    if last_event := last_manifest_event(machine.boot_events()):
        kept_digests = {digest, last_event.text("manifest"), sent_manifest(last_event)}
        for file in machine.locks.glob("*.*"):
            if file.stem not in kept_digests:
                file.unlink(missing_ok=True)


def lock_of(machine: Machine) -> Lock:
    """Returns the lock that a machine runs, or ran last if it is halted. Its image is the image of the machine.

    Raises StateError: `box-not-found`, or `lock-unknown` if the guest has not reported a manifest, or the lock of that
    manifest was not kept. The field `manifest` is the reported digest, or empty.
    """
    record = machine.record()
    last_event = last_manifest_event(machine.boot_events())
    digest = last_event.text("manifest") if last_event else ""
    if not _DIGEST.fullmatch(digest):
        raise _unknown(machine, f"{machine.name} has not reported which manifest it runs", "")
    if not _file(machine, digest).is_file():
        problem = f"the lock of the manifest that {machine.name} runs ({digest[:12]}) was not kept"
        raise _unknown(machine, problem, digest)
    return attrs.evolve(read_lock(_file(machine, digest)), image=record.image)


def _unknown(machine: Machine, message: str, digest: str) -> StateError:
    return StateError(
        message,
        code="lock-unknown",
        hint=f"`kimbox provision {machine.name}` provisions it from its current lock",
        fields={"name": machine.name, "manifest": digest},
    )


def _file(machine: Machine, digest: str) -> Path:
    return machine.locks / f"{digest}.lock"
