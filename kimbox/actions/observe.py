"""Observes a machine, checks who owns it, and finds how ssh reaches it.

Imports no library for ssh or git, because `status` needs none and must start fast.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kimbox.drivers import registry
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import read_json
from kimbox.guest import stale
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.events import Event
from kimbox.log import log
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose, Record
from kimbox.machine.state import STATE_HINTS, Observation, State, derive, require
from kimbox.project.project import Project

#: Timeout of the event with which a clone reports its ssh server, in seconds, and the interval of looking for it.
SSHD_TIMEOUT_S, SSHD_INTERVAL_S = 30.0, 0.02

#: Time after the last event of a clone in which its ssh server is asked for its greeting first, and timeout of that, in
#: seconds.
SETTLE_S, GREETING_TIMEOUT_S = 10.0, 5.0

#: A sha256 digest of a manifest.
_DIGEST = re.compile(r"[0-9a-f]{64}")


def observe(machine: Machine) -> Observation:
    """Observes a machine, also one that does not exist. Takes no lock."""
    try:
        record = machine.record()
    except StateError:
        return Observation(exists=False, running=False, paused=False, suspended=False, events=(), ended_by_us=False)
    return registry.of(machine).observe(record)


def state(machine: Machine) -> State:
    """Returns the present state of a machine."""
    return derive(observe(machine))


def provenance(machine: Machine, events: Sequence[Event]) -> dict[str, Any] | None:
    """Returns what a box is made of and how it was provisioned, as /etc/kimbox/box.json in the box has it.

    None if the box has not reported it.
    """
    event = _described(events)
    try:
        described = read_json(machine.locks / f"{event.text('manifest')}.json") if event else {}
    except (OSError, KimboxError):  # another host sent the manifest, or this file was removed
        described = {}
    return provenance_of(events, described)


def _described(events: Sequence[Event]) -> Event | None:
    """Returns the last event with the manifest of a box; None if there is none."""
    event = next((event for event in reversed(events) if event.name == "box"), None)
    return event if event and _DIGEST.fullmatch(event.text("manifest")) else None


def provenance_of(events: Sequence[Event], described: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same of a box that has sent these events. `described`: box.json of its manifest."""
    event = _described(events)
    if event is None:
        return None
    digest = event.text("manifest")
    return {
        "manifest": digest,
        "role": event.text("role"),
        "site": event.text("site"),
        "username": event.text("username"),
        "unpinned": event.text("unpinned").split(),
        "stale": stale.from_event(event),
        "provisioned": {
            "at": event.text("at") or None,
            "by": event.text("by"),
            "boot_mode": event.text("mode"),
            "setup_commit": event.text("commit") or None,
            "part": event.text("part") or None,
        },
        **described,
    }


def check_owner(machine: Machine, project: Project, purpose: Purpose = Purpose.BOX, *, is_locked: bool = False) -> None:
    """Checks that a machine, if it exists, was made from this spec and for this purpose. Raises StateError if not.

    If the file of its spec is gone, and this spec has the content of the last start or of the last provisioning, the
    spec was moved: its new path is written to the record. `is_locked`: the caller holds the lock of the machine.
    """
    if not machine.exists:
        return
    record = machine.record()
    refuse_purpose(record, purpose)
    if record.shipped and record.shipped == project.shipped:
        return
    if not record.shipped and Path(record.source).resolve() == project.source.resolve():
        return
    was_moved = not record.shipped and not project.shipped and _is_gone(Path(record.source))
    if was_moved and project.box.digest in {record.spec_digest, *_delivered_spec_digests(machine)}:
        _adopt(machine, project, is_locked=is_locked)
        return
    hint = f"give this spec another name, or remove the other box with `kimbox destroy {machine.name}`"
    if was_moved:
        hint = (
            "that file is gone, but this spec differs from it: if you moved it, undo its changes, run `kimbox status`, "
            f"and make the changes again. Otherwise {hint}"
        )
    raise StateError(
        f"the name {machine.name} belongs to the spec {record.source}, not to {project.source}",
        code="name-taken",
        fields={"name": machine.name, "owner": record.source, "spec": str(project.source)},
        hint=hint,
    )


def refuse_stored_memory(machine: Machine, verb: str) -> None:
    """Raises StateError if the memory of a box has secret variables, and the verb would write it to a disk."""
    record = machine.record()
    if record.secrets:
        raise StateError(
            f"cannot {verb} {machine.name}: its memory would be stored with the secret variables "
            f"{', '.join(record.secrets)}",
            code="box-has-secrets",
            hint=f"`kimbox halt {machine.name}` keeps the disk",
            fields={"name": machine.name, "verb": verb},
        )


def _is_gone(path: Path) -> bool:
    """Whether a file does not exist. A file that cannot be reached now, for example without permission, may exist."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _adopt(machine: Machine, project: Project, *, is_locked: bool) -> None:
    """Writes the new path of a spec that was moved to the record. If another process is at work, a later call does."""
    with contextlib.ExitStack() as stack:
        if not is_locked:
            try:
                stack.enter_context(machine.locked())
            except StateError:
                return
        record = machine.record()
        log.info(f"the spec of {machine.name} was moved from {record.source} to {project.source}")
        machine.write_record(attrs.evolve(record, source=str(project.source)))


def _delivered_spec_digests(machine: Machine) -> set[str]:
    """The digests of the specs that were sent to a machine."""
    from kimbox.machine import delivered_locks  # it reads YAML, which takes longer to import than `status` to run

    return delivered_locks.spec_digests(machine)


def refuse_purpose(record: Record, purpose: Purpose = Purpose.BOX) -> None:
    """Raises StateError if a machine is for another purpose."""
    if record.purpose is purpose:
        return
    name, box = record.name, record.box
    fields = {"name": name, "box": box, "purpose": str(record.purpose)}
    if record.purpose is Purpose.MAINTENANCE:
        hint = f"`kimbox maintain {box}` starts it; halt, status, ssh and exec accept its name"
        raise StateError(f"{name} is the maintenance machine of {box}", code="wrong-purpose", hint=hint, fields=fields)
    hint = f"halt, status, ssh and exec accept its name: `kimbox status {name}`"
    message = f"{name} is a machine of the box {box} for another purpose: {record.purpose}"
    raise StateError(message, code="wrong-purpose", hint=hint, fields=fields)


def refuse_sealed(machine: Machine, verb: str) -> None:
    """Raises StateError if the box is sealed, because a sealed box accepts no login. `verb` is for the message."""
    sealed = machine.record().sealed if machine.exists else None
    if sealed:
        raise StateError(
            f"cannot {verb} {machine.name}: it is sealed as {sealed.role} of {sealed.site}",
            code="box-sealed",
            hint=STATE_HINTS[State.SEALED].format(name=machine.name),
            fields={"name": machine.name, "verb": verb, "role": sealed.role, "site": sealed.site},
        )


def needs_restart_to_seal(machine: Machine, now: State) -> bool:
    """Whether a box has taken its role, and is open until it restarts. `now`: its present state."""
    return now is State.READY and machine.record().sealed is not None and not machine.unseal_mark.exists()


def endpoint(machine: Machine) -> Endpoint:
    """Returns how ssh reaches a box. Raises StateError if there is no such box."""
    return machine.endpoint(machine.record())


def reach(machine: Machine, verb: str = "ssh", *, shares: bool = False) -> Endpoint:
    """Returns how ssh reaches a box that accepts a login now; pins its host key first. `verb` is for messages.

    `shares`: a command over the shared connection follows, so that connection may be opened already.

    Raises StateError if the box is sealed, is in a state without ssh, or has not reported its host key.
    """
    refuse_sealed(machine, verb)
    require(verb, machine.name, state(machine))
    if not machine.known_hosts.exists():
        key_events = [event for event in machine.boot_events() if event.name == "hostkey"]
        if not key_events:
            raise StateError(
                f"{machine.name} has not reported its ssh host key yet",
                code="host-key-missing",
                hint=f"`kimbox up {machine.name}` waits for it",
                fields={"name": machine.name},
            )
        keys.pin_host_key(machine, key_events[-1].text("key"))
    place = endpoint(machine)
    if machine.record().woken:
        _await_sshd(machine, place, shares)
    return place


def _await_sshd(machine: Machine, place: Endpoint, shares: bool) -> None:
    """Waits until the ssh server of a clone has started again with its own key, or until SSHD_TIMEOUT_S have passed.

    Before that it resets connections, and soon after its event it may still reset one. The clone has its identity then,
    and `kimbox clone` does not wait for it.
    """
    deadline = time.monotonic() + SSHD_TIMEOUT_S
    while time.monotonic() < deadline and registry.of(machine).listen():
        if any(event.name == "sshd" for event in machine.boot_events()):
            is_settled = time.time() - machine.events_file.stat().st_mtime > SETTLE_S
            if is_settled or _accepts(place, shares, deadline - time.monotonic()):
                return
        time.sleep(SSHD_INTERVAL_S)


def _accepts(place: Endpoint, shares: bool, timeout_s: float) -> bool:
    """Whether the ssh server accepts a connection. With `shares`, it is the shared one: each takes 0.3 s."""
    from kimbox.guest import shared  # other verbs need no ssh

    opened = shared.opens(place, max(timeout_s, 1)) if shares else None
    return _greets(place) if opened is None else opened


def _greets(place: Endpoint) -> bool:
    """Whether the ssh server accepts a connection and sends the beginning of its greeting (RFC 4253, 4.2)."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((place.host, place.port), timeout=GREETING_TIMEOUT_S) as connection,
    ):
        return connection.recv(4) == b"SSH-"
    return False


def check_connection(machine: Machine, endpoint: Endpoint, *, may_end: bool = False) -> None:
    """Finds out why ssh(1) exited with `shared.SSH_FAILED`. Returns if that was the exit code of the command itself.

    Raises GuestError if the connection was lost (`connection-lost`), unless it `may_end`, or if the guest could not
    start the command (`too-many-processes`).
    """
    from kimbox.guest import shared  # other verbs need no ssh

    if not (registry.of(machine).listen() and shared.answers(endpoint)):
        if may_end:
            return
        raise GuestError(
            f"the connection to {machine.name} was lost during the command",
            code="connection-lost",
            hint=f"see `kimbox status {machine.name}` and `kimbox logs --serial {machine.name}`",
            fields={"name": machine.name},
        )
    if not shared.can_start(endpoint):
        shared.retire(endpoint.key_path.parent)
        raise GuestError(
            f"{machine.name} cannot start the command: its running programs have reached the limit of processes",
            code="too-many-processes",
            hint="run the same command again: it gets another connection",
            fields={"name": machine.name},
        )
