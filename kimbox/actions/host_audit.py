"""The checks that the host adds to the audit of a sealed box. Root in the box cannot change their results."""

from __future__ import annotations

from collections.abc import Sequence

from kimbox.errors import KimboxError
from kimbox.guest.audit import MAX_TEXT, Check, Severity, Status
from kimbox.guest.events import Event, printable
from kimbox.image.disk import pristine
from kimbox.image.store import images
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.machine.state import State, last_manifest_event, lost_root

#: Identifier of the check whether the disk of a sealed box, except `persistent`, has the bytes of its image.
DISK_CHECK = "disk.equal"


def unsealed_reason(now: State, events: Sequence[Event]) -> str | None:
    """Returns why the present boot of a box with a role is not sealed. None: it is, it still starts, or does not run.

    A box that cannot seal itself powers itself off. It counts as unsealed, too: its work is not done.
    """
    if now is State.READY:
        return "it took its role, and is open until it restarts"
    lost = lost_root(events)
    if now is not State.FAILED and not (now is State.CRASHED and lost):
        return None
    event = lost or last_manifest_event(events)
    if event is None or event.name != "failed":
        return "the root file system of the box is full"
    what = " ".join(dict.fromkeys(filter(None, (event.text("kind"), event.text("name")))))
    return f"{what}: {event.text('reason') or 'the box reported no reason'}"[:MAX_TEXT]


def checks(machine: Machine, now: State, unsealed: str | None) -> tuple[Check, ...]:
    """Returns the checks of the host. `unsealed`: the result of `unsealed_reason`."""
    return _check_of_boot(now, unsealed), _check_disk(machine, now)


def _check_of_boot(now: State, unsealed: str | None) -> Check:
    """Returns the host's own check: whether the present boot of the box has sealed it."""
    status = Status.FAIL if unsealed is not None else Status.PASS if now is State.SEALED else Status.SKIP
    return Check(
        id="boot.sealed",
        title="The present boot has sealed the box",
        cis="",
        severity=Severity.HIGH,
        status=status,
        expected="sealed",
        found=str(now) if unsealed is None else f"{now}: {unsealed}"[:MAX_TEXT],
        remedy="kimbox status; then kimbox reload, or kimbox secure" if unsealed is not None else "",
    )


def _check_disk(machine: Machine, now: State) -> Check:
    """Returns the check of the host. The disk of a box that runs cannot be read: the check has the result of its start.

    Before the first start as a sealed box the changes on the disk are those of its owner.
    """
    record = machine.record()
    status = Status.SKIP
    if record.put_back is None:
        found = "the box was not started since it was sealed"
    elif now.running:
        changed, found = record.put_back.changed, f"as the host found it before the last start ({record.put_back.at})"
        status = Status.FAIL if changed else Status.PASS
        found = f"{found}: {', '.join(changed)}; it was put back" if changed else f"{found}: equal"
    else:
        status, found = _compare_disk(machine, record)
        found = f"{found}; put back last at {record.put_back.at}"
    remedy = "find out how root in the box was reached; the next start by the host puts the disk back"
    return Check(
        id=DISK_CHECK,
        title="The disk except /persistent has the bytes of the image, as this host reads it",
        cis="",
        severity=Severity.HIGH,
        status=status,
        expected="equal",
        found=printable(found[:MAX_TEXT]),
        remedy=remedy if status is Status.FAIL else "",
    )


def _compare_disk(machine: Machine, record: Record) -> tuple[Status, str]:
    """Compares the disk of a sealed box that does not run with its image. Returns the result, and what was found."""
    image = images.find(record.image)
    if image is None:
        return Status.FAIL, f"its image is not in the store ({record.image[:12]})"
    try:
        changed = pristine.differences(machine.disk, image.disk, image.format)
    except KimboxError as error:
        return Status.FAIL, f"it cannot be read: {error.message}"
    return (Status.FAIL, ", ".join(changed)) if changed else (Status.PASS, "equal")
