"""The past audits of a machine: a short record of each, so that a report can show how they changed.

Reports themselves are not kept: QEMU begins a new log of a sealed box at each start, and an open box keeps none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox.errors import KimboxError
from kimbox.files import locked, read_end, write_atomic
from kimbox.guest import audit
from kimbox.guest.audit import Report, Status
from kimbox.guest.events import parse_object
from kimbox.machine.folder import Machine

#: Maximum number of audits that are kept, and maximum size of their file, in bytes. The oldest ones are removed.
MAX_AUDITS = 500
MAX_BYTES = 1 << 20

#: Size of the end of a sealed box's log that is read, in bytes.
LOG_BYTES = 1 << 20

#: Maximum length of a text in a record, in characters.
_MAX_TEXT = 100


@attrs.frozen
class PastAudit:
    """The result of one audit. `at`: its time in UTC by the clock of the guest; `boot`: the id of the guest's boot."""

    at: str
    boot: str
    #: Number of checks of each status.
    counts: dict[str, int]
    #: Ids of the failed checks, and of those among them that are breaches.
    failed: tuple[str, ...]
    breaches: tuple[str, ...]

    @classmethod
    def of(cls, report: Report) -> Self:
        """The record of a report."""
        return cls(
            report.at,
            report.boot,
            {str(status): len(report.of(status)) for status in Status},
            tuple(check.id for check in report.of(Status.FAIL)),
            tuple(check.id for check in report.breaches),
        )

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Self:
        """Parses a line of the file. Raises ValueError, KeyError or TypeError."""
        counts = {str(status): _count(value["counts"][status]) for status in Status}
        failed, breaches = (tuple(map(_text, value[key])) for key in ("failed", "breaches"))
        return cls(_text(value["at"]), _text(value["boot"]), counts, failed, breaches)


def past(machine: Machine) -> list[PastAudit]:
    """The past audits of a machine, oldest first: the kept ones, and those in the log of a sealed box.

    A kept one counts if both have it: it also has the checks of the host.
    """
    found = map(PastAudit.of, audit.reports(read_end(machine.audit_log, LOG_BYTES)))
    return _in_order([*found, *kept(machine.past_audits)])


def keep(machine: Machine, report: Report) -> None:
    """Adds an audit to those that are kept. A failure is no error, because the audit itself has succeeded."""
    with contextlib.suppress(OSError, KimboxError), locked(machine.folder / "audits.lock"):
        lines = [json.dumps(attrs.asdict(one)) + "\n" for one in _in_order([*past(machine), PastAudit.of(report)])]
        while sum(map(len, lines)) > MAX_BYTES:
            del lines[0]
        write_atomic(machine.past_audits, "".join(lines))


def kept(file: Path) -> Iterable[PastAudit]:
    """The audits in the file of a machine. A damaged line is left out."""
    for line in read_end(file, MAX_BYTES).split(b"\n"):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            yield PastAudit.parse(parse_object(line) or {})


def _in_order(found: Iterable[PastAudit]) -> list[PastAudit]:
    """Each audit once, in the order of their times, at most MAX_AUDITS."""
    distinct = {(one.at, one.boot): one for one in found}
    return [distinct[key] for key in sorted(distinct)][-MAX_AUDITS:]


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"{value!r:.80} is not a short text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= audit.MAX_CHECKS:
        raise ValueError(f"{value!r:.80} is not a number of checks")
    return value
