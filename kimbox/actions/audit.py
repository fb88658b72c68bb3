"""The audit of a box. An open box runs it over ssh; a sealed box runs it by itself, and its last report is read.

To the report of a sealed box the host adds checks of its own (`host_audit`).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import attrs

from kimbox import utctime
from kimbox.actions import host_audit
from kimbox.actions.observe import reach, state
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import read_bounded, read_end
from kimbox.guest import audit
from kimbox.guest.audit import MAX_CHECKS, Report
from kimbox.guest.events import printable
from kimbox.machine import past_audits
from kimbox.machine.folder import Machine
from kimbox.machine.state import State

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
    unsealed = host_audit.unsealed_reason(now, events)
    if newest is None and unsealed is not None:
        boot = events[-1].boot if events else ""
        record = machine.record()
        role, site = (record.sealed.role, record.sealed.site) if record.sealed else ("", "")
        host_report = Report(utctime.text(), boot, role, site, host_audit.checks(machine, now, unsealed))
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
    own = host_audit.checks(machine, now, unsealed)
    own_ids = {check.id for check in own}
    checks = (*own, *(check for check in newest.checks if check.id not in own_ids))[:MAX_CHECKS]
    later = f"; it is {now} now" if now is not State.SEALED else ""
    source = f"sent by the box {_age(newest.at, age_s)}{later}"
    return Audited(attrs.evolve(newest, checks=checks), source, stale, unsealed)


def _age_s(at: str) -> float:
    """Returns the age of a time of a guest by this host's clock, negative if it is ahead; infinite if it is no time."""
    try:
        return time.time() - utctime.seconds(at)
    except ValueError:
        return math.inf


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
