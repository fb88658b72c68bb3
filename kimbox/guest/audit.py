"""Audit reports of a box: parses, evaluates and compares them. Pure.

The guest writes lines of JSON (schemas/audit.schema.json): a header, a line for each check, and an end line. They are
untrusted input: a report that is incomplete or malformed is ignored, texts are limited in length, and no control
sequence reaches a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Self

import attrs

from kimbox.guest.events import parse_object, printable

#: Version of the report's format.
FORMAT = 1

#: Maximum number of checks in a report. A report with more checks is ignored.
MAX_CHECKS = 500

#: Maximum length of a text, in characters. The rest is cut off.
MAX_TEXT = 1000

#: Maximum number of a report.
MAX_SEQUENCE = (1 << 53) - 1

_ID = re.compile(r"[a-z][a-z0-9_.]{0,79}")
_CIS = re.compile(r"([0-9]{1,2}(\.[0-9]{1,2}){1,6})?")
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_BOOT = re.compile(r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?")


class Severity(StrEnum):
    """How serious the failure of a check is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Status(StrEnum):
    """The result of a check. `info` only reports a value; `skip` means that the check does not apply."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INFO = "info"
    SKIP = "skip"


#: Severities at which a failed check is a breach.
BREACHES = frozenset({Severity.HIGH, Severity.MEDIUM})


@attrs.frozen
class Check:
    """The result of a check. `cis`: its number in the CIS Debian Linux 12 Benchmark, or empty."""

    id: str
    title: str
    cis: str
    severity: Severity
    status: Status
    expected: str
    found: str
    remedy: str

    @property
    def is_breach(self) -> bool:
        return self.status is Status.FAIL and self.severity in BREACHES

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Self:
        """Parses the line of a check. Unknown fields are ignored. Raises ValueError, KeyError or TypeError."""
        return cls(
            id=_matching(value["id"], _ID),
            title=_text(value["title"]),
            cis=_matching(value["cis"], _CIS),
            severity=Severity(value["severity"]),
            status=Status(value["status"]),
            expected=_text(value["expected"]),
            found=_text(value["found"]),
            remedy=_text(value["remedy"]),
        )


@attrs.frozen
class Report:
    """The report of an audit. `at` is the time by the guest's clock; `boot` is the id of the guest's boot, or empty."""

    at: str
    boot: str
    role: str
    site: str
    checks: tuple[Check, ...]
    #: Number of the report in its boot, from 1. 0: it was not sent by the box itself, or by an older kimbox.
    sequence: int = 0

    @property
    def breaches(self) -> tuple[Check, ...]:
        """The failed checks of severity high or medium."""
        return tuple(check for check in self.checks if check.is_breach)

    def of(self, status: Status) -> tuple[Check, ...]:
        """The checks with a status."""
        return tuple(check for check in self.checks if check.status is status)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON, for `--json` and `--save`."""
        return {"audit": FORMAT} | attrs.asdict(self)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """The inverse of `as_json`. Raises ValueError if the value is not a report."""
        try:
            checks = tuple(Check.parse(check) for check in value["checks"][: MAX_CHECKS + 1])
            return cls(**_header(value), checks=_distinct(checks))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a report of an audit: {error}") from None


@attrs.frozen
class Comparison:
    """The failed checks that differ between two reports (new, repaired), and those that failed both times."""

    appeared: tuple[Check, ...]
    mended: tuple[Check, ...]
    same: tuple[Check, ...]


def compare(before: Report, after: Report) -> Comparison:
    """Compares the failed checks of two reports. A failed check that `after` does not contain counts as `same`."""
    failed_before = {check.id for check in before.of(Status.FAIL)}
    failed_after = {check.id for check in after.of(Status.FAIL)}
    ids_after = {check.id for check in after.checks}
    return Comparison(
        appeared=tuple(check for check in after.of(Status.FAIL) if check.id not in failed_before),
        mended=tuple(check for check in before.of(Status.FAIL) if check.id in ids_after - failed_after),
        same=tuple(check for check in before.of(Status.FAIL) if check.id in failed_after or check.id not in ids_after),
    )


def reports(data: bytes) -> Iterator[Report]:
    """Every complete report in the output of a guest, oldest first. A malformed line makes its report invalid."""
    header: dict[str, Any] | None = None
    checks: list[Check] = []
    for raw in data.split(b"\n"):
        line = parse_object(raw)
        if line is not None and "audit" in line:
            checks = []
            try:
                header = _header(line)
            except (KeyError, TypeError, ValueError):
                header = None
        elif header is not None and raw.strip():
            try:
                if line is not None and line.get("end") is True:
                    if type(line["checks"]) is int and line["checks"] == len(checks):
                        yield Report(**header, checks=_distinct(tuple(checks)))
                    header = None
                else:
                    checks.append(Check.parse(line or {}))
                    header = header if len(checks) <= MAX_CHECKS else None
            except (KeyError, TypeError, ValueError):
                header = None


def newest(data: bytes, boot: str | None = None) -> Report | None:
    """The complete report with the highest number, or None. Of equal numbers, it is the last one.

    `boot`: only reports of this boot of the guest count. None: the reports are of one boot, or have no number.
    """
    last = None
    for found in reports(data):
        if boot in (None, found.boot) and (last is None or found.sequence >= last.sequence):
            last = found
    return last


def _header(line: dict[str, Any]) -> dict[str, Any]:
    if type(line["audit"]) is not int or line["audit"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return {
        "at": _matching(line["at"], _AT),
        "boot": _matching(line["boot"], _BOOT),
        "role": _text(line["role"]),
        "site": _text(line["site"]),
        "sequence": _number(line.get("sequence", 0)),
    }


def _distinct(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    if not 0 < len(checks) <= MAX_CHECKS or len({check.id for check in checks}) < len(checks):
        raise ValueError(f"it has no check, more than {MAX_CHECKS}, or the same check twice")
    return checks


def _matching(value: Any, pattern: re.Pattern[str]) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise ValueError(f"{value!r:.80} does not have the expected form")


def _number(value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_SEQUENCE:
        return value
    raise ValueError(f"{value!r:.80} is not the number of a report")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a text")
    return printable(value[:MAX_TEXT])
