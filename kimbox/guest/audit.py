"""What an audit of a box found: the report of its guest, read, judged, and compared with another one.

The guest writes lines of JSON (schemas/audit.schema.json): the box, a line for each check, the end. It may be broken
or hostile: a report is whole and well-formed, or it is none; nothing in it is longer than it may be, or reaches a
terminal as a control sequence. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Self

import attrs

from kimbox.guest.events import parse_object, printable

#: Version of the report.
FORMAT = 1

#: A report with more checks is none.
MAX_CHECKS = 500

#: Characters of each text that are kept.
MAX_TEXT = 1000

_ID = re.compile(r"[a-z][a-z0-9_.]{0,79}")
_CIS = re.compile(r"([0-9]{1,2}(\.[0-9]{1,2}){1,6})?")
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_BOOT = re.compile(r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?")


class Severity(StrEnum):
    """How bad it is where a check fails."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Status(StrEnum):
    """How a check ended. `info` judges nothing; `skip` says why there was nothing to look at."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INFO = "info"
    SKIP = "skip"


#: A check that fails is a breach from here on.
BREACHES = frozenset({Severity.HIGH, Severity.MEDIUM})


@attrs.frozen
class Check:
    """One thing that was looked at. `cis`: its number in the CIS Debian Linux 12 Benchmark; empty where it has none."""

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
        """From its line; fields that are not known are dropped. Raises ValueError, KeyError or TypeError."""
        return cls(
            id=_shaped(value["id"], _ID),
            title=_text(value["title"]),
            cis=_shaped(value["cis"], _CIS),
            severity=Severity(value["severity"]),
            status=Status(value["status"]),
            expected=_text(value["expected"]),
            found=_text(value["found"]),
            remedy=_text(value["remedy"]),
        )


@attrs.frozen
class Report:
    """An audit. `at` is the time by the guest's clock; `boot` tells the guest's boots apart."""

    at: str
    boot: str
    role: str
    site: str
    checks: tuple[Check, ...]

    @property
    def breaches(self) -> tuple[Check, ...]:
        """The failed checks that matter."""
        return tuple(check for check in self.checks if check.is_breach)

    def of(self, status: Status) -> tuple[Check, ...]:
        """The checks that ended so."""
        return tuple(check for check in self.checks if check.status is status)

    def as_json(self) -> dict[str, Any]:
        """As `--json` shows and `--save` writes it."""
        return {"audit": FORMAT} | attrs.asdict(self)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """From what `as_json` gives. Raises ValueError if it is none."""
        try:
            checks = tuple(Check.parse(check) for check in value["checks"][: MAX_CHECKS + 1])
            return cls(**_header(value), checks=_distinct(checks))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no report of an audit: {error}") from None


@attrs.frozen
class Comparison:
    """What changed between two reports: checks that fail now, failed before, and still do."""

    appeared: tuple[Check, ...]
    mended: tuple[Check, ...]
    same: tuple[Check, ...]


def compare(before: Report, after: Report) -> Comparison:
    """What changed. A failed check that was not made again is not known to be mended: it counts as the same."""
    had = {check.id for check in before.of(Status.FAIL)}
    has = {check.id for check in after.of(Status.FAIL)}
    made = {check.id for check in after.checks}
    return Comparison(
        appeared=tuple(check for check in after.of(Status.FAIL) if check.id not in had),
        mended=tuple(check for check in before.of(Status.FAIL) if check.id in made - has),
        same=tuple(check for check in before.of(Status.FAIL) if check.id in has or check.id not in made),
    )


def reports(data: bytes) -> Iterator[Report]:
    """Every whole report in what a guest wrote, oldest first. A line that is none of one spoils the report it is in."""
    header: dict[str, str] | None = None
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


def newest(data: bytes) -> Report | None:
    """The last whole report, if there is one."""
    last = None
    for last in reports(data):  # noqa: B007
        pass
    return last


def _header(line: dict[str, Any]) -> dict[str, str]:
    if type(line["audit"]) is not int or line["audit"] != FORMAT:
        raise ValueError(f"it has another format than {FORMAT}")
    return {
        "at": _shaped(line["at"], _AT),
        "boot": _shaped(line["boot"], _BOOT),
        "role": _text(line["role"]),
        "site": _text(line["site"]),
    }


def _distinct(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    if not 0 < len(checks) <= MAX_CHECKS or len({check.id for check in checks}) < len(checks):
        raise ValueError("its checks are none, too many, or there twice")
    return checks


def _shaped(value: Any, shape: re.Pattern[str]) -> str:
    if isinstance(value, str) and shape.fullmatch(value):
        return value
    raise ValueError(f"{value!r:.80} is not of the shape that is expected")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is none")
    return printable(value[:MAX_TEXT])
