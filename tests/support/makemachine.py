"""Makes folders of machines for tests. No process runs; a test can hold the run lock as a process would."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from typing import Any

import attrs

from kimbox.guest.endpoint import Endpoint
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record

BOOT = "11111111-2222-4333-8444-555555555555"
NEXT_BOOT = "99999999-2222-4333-8444-555555555555"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDYeIl0r0lFR1rU7XcF4xXvjTyFQyDkDVVDDhTOkGVJE"
OTHER_HOST_KEY = HOST_KEY.replace("DYeIl0", "DXXXX0")

RECORD = Record(
    name="tiny",
    source="/nowhere/kimbox.yaml",
    shipped=None,
    spec_digest="d" * 64,
    image="e" * 64,
    uuid="01234567-89ab-4cde-8f01-23456789abcd",
    mac="52:54:00:01:23:45",
    ssh_port=20022,
    forwards={8888: 20023},
)


def make_machine(name: str = "tiny", **changes: Any) -> Machine:
    """Makes a machine with a record, a key and an empty disk."""
    machine = Machine(name)
    machine.folder.mkdir(parents=True)
    machine.disk.touch()
    machine.key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n")
    machine.key.with_suffix(".pub").write_text(f"ssh-ed25519 AAAA kimbox-{name}\n")
    machine.write_record(attrs.evolve(RECORD, **{"name": name, "box": name} | changes))
    return machine


def event(kind: str, /, *, boot: str = BOOT, uptime_s: float = 1.5, **fields: str | int) -> str:
    """Returns an event as a line that a guest writes."""
    return json.dumps({"event": kind, "boot": boot, "uptime_s": uptime_s} | fields) + "\n"


def tell(machine: Machine, *lines: str) -> None:
    """Appends lines to the events of the guest."""
    with machine.events_file.open("a") as file:
        file.writelines(lines)


@contextlib.contextmanager
def running(machine: Machine) -> Iterator[None]:
    """Holds the run lock, so that the machine appears to run."""
    with machine.run_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_endpoint() -> Endpoint:
    """Returns the endpoint of a machine without a running guest."""
    machine = Machine("tiny")
    machine.folder.mkdir(parents=True, exist_ok=True)
    return machine.endpoint(RECORD)
