"""How well a box is closed, as it says itself: asked over ssh, or, where nobody enters it any more, as it told last."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import attrs

from kimbox.actions.observe import reach, state
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import read_bounded
from kimbox.guest import audit
from kimbox.guest.audit import Report
from kimbox.guest.events import printable
from kimbox.machine.folder import Machine, read_end
from kimbox.machine.state import State

#: Under software emulation an audit takes some ten seconds, most of them to search the disks; that ends by itself
#: after 150.
TIMEOUT_S = 300.0

#: A sealed box tells every quarter of an hour; one that has not for so long does not do what it should.
STALE_S = 3 * 15 * 60.0

#: How much of what a sealed box told is looked at, from its end: some twenty reports.
LOG_BYTES = 1 << 20

#: A report of the host's that `--compare` reads is no longer.
MAX_REPORT_BYTES = 4 << 20

_COMMAND = "sudo -n /usr/lib/kimbox/audit"


@attrs.frozen
class Audited:
    """An audit of a box."""

    report: Report
    #: Where it comes from, in words.
    source: str
    #: The box runs, and has not told for so long that this says nothing about it any more.
    stale: bool = False


def report(machine: Machine) -> Audited:
    """An audit of a box. Raises StateError or GuestError if there is none."""
    now = state(machine)
    if now is State.SEALED or (machine.exists and machine.record().sealed):
        return _told(machine, now)
    return Audited(_asked(machine), "asked over ssh just now")


def load(text: bytes) -> Report:
    """A report that `kimbox audit` wrote: with --save, or with --json. Raises ValueError if it is none."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(value, dict) and isinstance(value.get("result"), dict):
        value = value["result"].get("report")
    return Report.parse(value)


def read(path: Path) -> Report:
    """`load` of a file. Raises KimboxError, naming it, if there is no report in it."""
    try:
        return load(read_bounded(path, limit_bytes=MAX_REPORT_BYTES))
    except ValueError as error:
        hint = "`kimbox audit --save FILE` writes one"
        raise KimboxError(f"{path} holds no report of an audit: {error}", hint=hint) from None


def _asked(machine: Machine) -> Report:
    from kimbox.guest.ssh import Guest

    with Guest(reach(machine, "audit")) as guest:
        answer = guest.run(_COMMAND, timeout_s=TIMEOUT_S)
    found = audit.newest(answer.stdout.encode())
    if answer.code != 0 or found is None:
        said = printable(answer.stderr.strip().split("\n")[-1][:300]) or f"it ended with status {answer.code}"
        hint = "a box from elsewhere, or of an older kimbox, has no audit: destroy it, and `kimbox up` makes it anew"
        raise GuestError(f"{machine.name} gave no whole report: {said}", hint=hint)
    return found


def _told(machine: Machine, now: State) -> Audited:
    """What a sealed box said last, whether it runs or not."""
    found = audit.newest(read_end(machine.audit_log, LOG_BYTES))
    if found is None:
        hint = "a sealed box audits itself when it has started, and every quarter of an hour"
        raise StateError(f"{machine.name} has not told yet how well it is closed", hint=hint)
    events = machine.boot_events()
    of_before = ", before it started last" if events and found.boot != events[-1].boot else ""
    later = f"; now it is {now}" if now is not State.SEALED else ""
    told_s = time.time() - machine.audit_log.stat().st_mtime  # by this host's clock
    stale = now.running and told_s > STALE_S
    return Audited(found, f"told by the box {_age(found.at)}{of_before}{later}", stale)


def _age(at: str) -> str:
    """How long ago a guest's time was; its clock may be wrong, and what it says may be no time at all."""
    try:
        then = datetime.datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return f"at {at} by its own clock"
    minutes = int((datetime.datetime.now(datetime.UTC) - then).total_seconds() // 60)
    if minutes < 0:
        return f"at {at} by its own clock, which is ahead"
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago"
