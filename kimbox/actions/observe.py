"""What is true of a machine now, and how ssh reaches it. Imports no library for ssh or git, as `status` needs none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kimbox.drivers import registry
from kimbox.errors import KimboxError, StateError
from kimbox.files import read_json
from kimbox.guest import stale
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.events import Event
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose, Record
from kimbox.machine.state import STATE_HINTS, Observation, State, derive, require
from kimbox.project.project import Project

_DIGEST = re.compile(r"[0-9a-f]{64}")


def observe(machine: Machine) -> Observation:
    """What is true of a machine now. Takes no lock."""
    try:
        record = machine.record()
    except StateError:
        return Observation(False, False, False, False, (), False)
    return registry.of(machine).observe(record)


def state(machine: Machine) -> State:
    """The state of a machine now."""
    return derive(observe(machine))


def provenance(machine: Machine, events: Sequence[Event]) -> dict[str, Any] | None:
    """What a box is made of and how it was provisioned, as its own box.json has it; None where it has not told."""
    told = next((event for event in reversed(events) if event.name == "box"), None)
    digest = told.text("manifest") if told else ""
    if told is None or not _DIGEST.fullmatch(digest):
        return None
    try:
        described = read_json(machine.locks / f"{digest}.json")
    except (OSError, KimboxError):  # it was brought by another machine, or kept by none
        described = {}
    return {
        "manifest": digest,
        "role": told.text("role"),
        "site": told.text("site"),
        "username": told.text("username"),
        "unpinned": told.text("unpinned").split(),
        "stale": stale.from_event(told),
        "provisioned": {
            "at": told.text("at") or None,
            "by": told.text("by"),
            "boot_mode": told.text("mode"),
            "setup_commit": told.text("commit") or None,
            "part": told.text("part") or None,
        },
        **described,
    }


def check_owner(machine: Machine, project: Project, purpose: Purpose = Purpose.BOX) -> None:
    """Checks that a machine, if it is there, was made from this spec and for this purpose.

    Raises StateError, saying which spec owns the name, or what the machine is for.
    """
    if not machine.exists:
        return
    record = machine.record()
    refuse_purpose(record, purpose)
    if record.shipped and record.shipped == project.shipped:
        return
    if record.shipped or Path(record.source).resolve() != project.source.resolve():
        raise StateError(
            f"the name {machine.name} belongs to the spec {record.source}, not to {project.source}",
            hint=f"give this spec another name, or remove the other box with `kimbox destroy {machine.name}`",
        )


def refuse_purpose(record: Record, purpose: Purpose = Purpose.BOX) -> None:
    """Raises StateError if a machine is for another purpose than this one."""
    if record.purpose is purpose:
        return
    name, box = record.name, record.box
    if record.purpose is Purpose.MAINTENANCE:
        hint = f"`kimbox maintain {box}` starts it; halt, status, ssh and exec take its name"
        raise StateError(f"{name} is the machine in which {box} is maintained", hint=hint)
    hint = "halt, status, ssh and exec take its name"
    raise StateError(f"{name} is a machine of the box {box} for another purpose: {record.purpose}", hint=hint)


def refuse_sealed(machine: Machine, verb: str) -> None:
    """Raises StateError where a box was secured: from then on nobody enters it."""
    sealed = machine.record().sealed if machine.exists else None
    if sealed:
        what = f"it is sealed as {sealed.role} of {sealed.site}"
        raise StateError(
            f"cannot {verb} {machine.name}: {what}", hint=STATE_HINTS[State.SEALED].format(name=machine.name)
        )


def is_open_still(machine: Machine, now: State) -> bool:
    """Whether a box has taken its role and was not restarted since, which would close it."""
    return now is State.READY and machine.record().sealed is not None and not machine.unseal_mark.exists()


def endpoint(machine: Machine) -> Endpoint:
    """How ssh reaches a box. Raises StateError if there is none."""
    return machine.endpoint(machine.record())


def reach(machine: Machine, verb: str = "ssh") -> Endpoint:
    """`endpoint`, for a box that answers now. Raises StateError, saying what to do, if it cannot."""
    refuse_sealed(machine, verb)
    require(verb, machine.name, state(machine))
    if not machine.known_hosts.exists():
        told = [event for event in machine.boot_events() if event.name == "hostkey"]
        if not told:
            raise StateError(
                f"{machine.name} has not told its ssh host key yet", hint=f"wait for it with `kimbox up {machine.name}`"
            )
        keys.pin_host_key(machine, told[-1].text("key"))
    return endpoint(machine)
