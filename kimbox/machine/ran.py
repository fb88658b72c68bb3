"""Which lock a box runs: the host keeps the lock of each manifest it sends, and the guest says which one it is at."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from kimbox.errors import StateError
from kimbox.files import write_atomic
from kimbox.lock.lockfile import Lock, read_lock, write_lock
from kimbox.machine.folder import Machine
from kimbox.machine.state import last_word, wanted_by

_DIGEST = re.compile(r"[0-9a-f]{64}")


def keep(machine: Machine, digest: str, lock: Lock, described: bytes = b"") -> None:
    """Notes lock and box.json of a manifest that is about to be sent; drops those that the box cannot go back to."""
    machine.locks.mkdir(exist_ok=True)
    write_lock(_file(machine, digest), lock)
    if described:
        write_atomic(_file(machine, digest).with_suffix(".json"), described)
    if told := last_word(machine.boot_events()):
        kept = {digest, told.text("manifest"), wanted_by(told)}
        for file in machine.locks.glob("*.*"):
            if file.stem not in kept:
                file.unlink(missing_ok=True)


def lock_of(machine: Machine) -> Lock:
    """The lock that a box runs, with the image it was made from; for a halted one, what it ran last.

    Raises StateError if there is no such box, or if it has not been provisioned from a lock that this machine knows.
    """
    record = machine.record()
    told = last_word(machine.boot_events())
    digest = told.text("manifest") if told else ""
    hint = f"`kimbox provision {machine.name}` brings it what its lock says"
    if not _DIGEST.fullmatch(digest):
        raise StateError(f"{machine.name} has not told what it runs", hint=hint)
    if not _file(machine, digest).is_file():
        raise StateError(f"the lock of what {machine.name} runs (manifest {digest[:12]}) was not kept", hint=hint)
    return attrs.evolve(read_lock(_file(machine, digest)), image=record.image)


def _file(machine: Machine, digest: str) -> Path:
    return machine.locks / f"{digest}.lock"
