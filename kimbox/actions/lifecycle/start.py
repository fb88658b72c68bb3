"""Starts the process of a machine, or wakes it, and keeps its record true."""

from __future__ import annotations

import time

import attrs

from kimbox.drivers import registry
from kimbox.drivers.base import Launch
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.guest import shared
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed
from kimbox.machine.state import State
from kimbox.spec.model import Box


def start(machine: Machine, box: Box | None, *, resume: bool = False) -> None:
    """Starts the process with the spec's shape; a saved state wakes with the shape that it was saved in.

    Without a spec the shape is that of the record. The record says that the machine runs only after the start: where
    the start fails, a suspended box stays suspended. Raises StateError if neither knows the shape.
    """
    shared.close(machine.folder)  # a connection to a guest that crashed
    record = machine.record()
    cpus, memory_bytes = (box.cpus, box.memory_bytes) if box else (None, None)
    scratch = box.scratch if box and not resume else record.scratch
    if resume:
        cpus, memory_bytes = record.cpus or cpus, record.memory_bytes or memory_bytes
    if cpus is None or memory_bytes is None:
        raise StateError(f"the record of {machine.name} does not say what it ran with", hint=_drop_hint(machine))
    if box:
        record = attrs.evolve(record, spec_digest=box.digest, source=str(box.source))
    record = attrs.evolve(record, cpus=cpus, memory_bytes=memory_bytes, scratch=scratch)
    record = registry.of(machine).start(Launch(record, box, cpus, memory_bytes, resume=resume))
    machine.write_record(attrs.evolve(record, ended=None))


def wake(machine: Machine, before: State, box: Box | None = None) -> None:
    """Lets a paused or suspended guest continue; it does not report its events again."""
    if before is State.PAUSED:
        registry.of(machine).unpause()
    else:
        try:
            start(machine, box, resume=True)
        except GuestError as error:
            raise GuestError(error.message, hint=_drop_hint(machine)) from None
    try:
        if before is State.SUSPENDED:
            registry.of(machine).forget_suspended()
        if any(event.name == "sshd" for event in machine.boot_events()):
            set_clock(machine)
    except KimboxError as error:
        log.warn(f"{machine.name} goes on, but {error}")


def set_clock(machine: Machine) -> None:
    """Sets the clock of a guest that was stopped to the time of the host. Raises GuestError if the guest refuses."""
    with Guest(machine.endpoint(machine.record())) as guest:
        answer = guest.run(f"sudo -n date --utc --set=@{int(time.time())}", timeout_s=60)
        if answer.code != 0:
            raise GuestError(f"its clock cannot be set: {answer.stderr.strip()}")


def mend_record(machine: Machine, before: State) -> None:
    """Brings the record up to date with a guest that runs or has taken its role.

    A kimbox that was killed may have left the record as it was before.
    """
    record = machine.record()
    mended = attrs.evolve(record, ended=None) if before.running else record
    sealed = next((event for event in reversed(machine.boot_events()) if event.name == "sealed"), None)
    if sealed and not record.sealed and not machine.unseal_mark.exists():
        mended = attrs.evolve(mended, sealed=Sealed(sealed.text("role")[:100], sealed.text("site")[:300]))
    if mended != record:
        machine.write_record(mended)


def _drop_hint(machine: Machine) -> str:
    return f"`kimbox halt --force {machine.name}` drops the saved state, then `kimbox up {machine.name}` boots"
