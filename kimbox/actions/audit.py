"""The audit of a box. An open box runs it over ssh; a sealed box runs it by itself, and its last report is read.

To the report of a sealed box the host adds checks of its own. Root in the box cannot change their results.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from kimbox.actions.observe import reach, state
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import read_bounded
from kimbox.guest import audit
from kimbox.guest.audit import MAX_CHECKS, MAX_TEXT, Check, Report, Severity, Status
from kimbox.guest.events import Event, printable
from kimbox.image.disk import pristine
from kimbox.image.store import images
from kimbox.machine import past_audits
from kimbox.machine.folder import Machine, read_end
from kimbox.machine.record import Record
from kimbox.machine.state import State, last_manifest_event, lost_root

#: Timeout of an audit over ssh, in seconds. Under emulation an audit takes about 10 s, most of it for the search of the
#: disks, which the guest itself limits to 150 s.
TIMEOUT_S = 300.0

#: Maximum age of the last report of a sealed box that runs, in seconds: it must send one every 15 minutes.
STALE_S = 3 * 15 * 60.0

#: Maximum time by which the clock of a guest may be ahead of this host's, in seconds. The age of a report that is
#: further ahead is not known.
MAX_AHEAD_S = 5 * 60.0

#: Size of the end of the audit log that is read, in bytes: about 20 reports.
LOG_BYTES = 1 << 20

#: Maximum size of a report file that `--compare` reads, in bytes.
MAX_REPORT_BYTES = 4 << 20

#: Format of a time in a report.
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

#: A check of the host: whether the disk of a sealed box, except `persistent`, has the bytes of its image.
DISK_CHECK = "disk.equal"

#: The command that runs an audit in a guest.
_COMMAND = "sudo -n /usr/lib/kimbox/audit"


@attrs.frozen
class Audited:
    """A report of an audit, and where it comes from."""

    report: Report
    #: Text for the user: how the report was obtained, and its age.
    source: str
    #: Whether the box runs, and its last report is older than STALE_S: the report may no longer be true.
    stale: bool = False
    #: Why the present boot of a box with a role is not sealed. None: it is sealed, still starts, or does not run.
    unsealed: str | None = None


def report(machine: Machine) -> Audited:
    """Returns the audit of a box: of an open box a new one, of a sealed box its last one.

    Raises StateError if the box does not run or has sent no report, GuestError if it cannot run an audit.
    """
    now = state(machine)
    if now is State.SEALED or (machine.exists and machine.record().sealed):
        audited = _last_report(machine, now)
    else:
        audited = Audited(_run_audit(machine), "run over ssh just now")
    past_audits.keep(machine, audited.report)
    return audited


def load(text: bytes) -> Report:
    """Parses a report that `kimbox audit` wrote with --save or with --json. Raises ValueError if it is not one."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if isinstance(value, dict) and isinstance(value.get("result"), dict):
        value = value["result"].get("report")
    return Report.parse(value)


def read(path: Path) -> Report:
    """Reads a report from a file. Raises KimboxError if the file cannot be read or is not a report."""
    try:
        return load(read_bounded(path, limit_bytes=MAX_REPORT_BYTES))
    except ValueError as error:
        raise KimboxError(
            f"cannot read an audit report from {path}: {error}",
            code="bad-report",
            hint="`kimbox audit --save FILE` writes one",
            fields={"path": str(path)},
        ) from None


def _run_audit(machine: Machine) -> Report:
    """Runs an audit in an open box, over ssh. Raises GuestError if its output is not a complete report."""
    from kimbox.guest.ssh import Guest

    with Guest(reach(machine, "audit")) as guest:
        answer = guest.run(_COMMAND, timeout_s=TIMEOUT_S)
    newest = audit.newest(answer.stdout.encode())
    if answer.code != 0 or newest is None:
        reason = printable(answer.stderr.strip().split("\n")[-1][:300]) or f"exit status {answer.code}"
        raise GuestError(
            f"the audit of {machine.name} gave no complete report: {reason}",
            code="audit-failed",
            hint="a box of another origin or of an older kimbox has no audit: `kimbox destroy "
            f"{machine.name}` and `kimbox up` create it with one",
            fields={"name": machine.name, "reason": reason},
        )
    return newest


def _last_report(machine: Machine, now: State) -> Audited:
    """Returns the last report of a sealed box in its last boot, also of a box that does not run.

    A box that did not seal itself may have sent none: the host's own check is the report then. Raises StateError if
    there is no report.
    """
    events = machine.boot_events()
    newest = audit.newest(read_end(machine.audit_log, LOG_BYTES), events[-1].boot if events else None)
    unsealed = _unsealed(now, events)
    if newest is None and unsealed is not None:
        boot = events[-1].boot if events else ""
        record = machine.record()
        role, site = (record.sealed.role, record.sealed.site) if record.sealed else ("", "")
        host_report = Report(_utc(time.time()), boot, role, site, _host_checks(machine, now, unsealed))
        return Audited(host_report, "the box has sent no report in its present boot", unsealed=unsealed)
    if newest is None:
        raise StateError(
            f"{machine.name} has not sent a whole report of its audit in its present boot",
            code="report-missing",
            hint="a sealed box runs an audit after its start, and then every 15 minutes",
            fields={"name": machine.name},
        )
    age_s = _age_s(newest.at)
    stale = now.running and not -MAX_AHEAD_S <= age_s <= STALE_S
    own = _host_checks(machine, now, unsealed)
    own_ids = {check.id for check in own}
    checks = (*own, *(check for check in newest.checks if check.id not in own_ids))[:MAX_CHECKS]
    later = f"; it is {now} now" if now is not State.SEALED else ""
    source = f"sent by the box {_age(newest.at, age_s)}{later}"
    return Audited(attrs.evolve(newest, checks=checks), source, stale, unsealed)


def _unsealed(now: State, events: Sequence[Event]) -> str | None:
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


def _host_checks(machine: Machine, now: State, unsealed: str | None) -> tuple[Check, ...]:
    """Returns the checks of the host. Root in the box cannot change their results."""
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


def _utc(time_s: float) -> str:
    """Returns a Unix time as the time of a report."""
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime(_TIME_FORMAT)


def _age_s(at: str) -> float:
    """Returns the age of a time of a guest by this host's clock, negative if it is ahead; infinite if it is no time."""
    try:
        then = datetime.datetime.strptime(at, _TIME_FORMAT).replace(tzinfo=datetime.UTC)
    except ValueError:
        return math.inf
    return time.time() - then.timestamp()


def _age(at: str, age_s: float) -> str:
    """Returns the age of a time of a guest as text."""
    if math.isinf(age_s):
        return f"at {at} by its own clock"
    if age_s < -MAX_AHEAD_S:
        return f"at {at} by its own clock, which is ahead"
    minutes = max(0, int(age_s // 60))
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago"
