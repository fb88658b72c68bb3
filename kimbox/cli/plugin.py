"""The output of `kimbox status --check`: one line and an exit status, as monitoring plugins have them.

Format: Monitoring Plugins Development Guidelines, which Nagios, Icinga, Naemon and others follow: text, `|`, and
performance data `'label'=value[unit];warning;critical`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimbox.cli import target
from kimbox.cli.output import report
from kimbox.errors import KimboxError

if TYPE_CHECKING:
    from kimbox.machine.problems import Severity

#: Maximum length of the text before the performance data, in characters. Some monitors cut off a longer line.
MAX_TEXT = 500


def check(box: str | None, file: Path | None) -> int:
    """Prints the line of a box and returns the exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.

    An error of kimbox is UNKNOWN: for a monitor, exit status 2 would be a statement about the box.
    """
    from kimbox.cli.status import summary_of
    from kimbox.machine.problems import Severity

    try:
        summary = summary_of(target.machine(box, file))
    except (KimboxError, OSError) as error:
        message = error.message if isinstance(error, KimboxError) else str(error)
        report("status", {"check": {"status": "unknown", "message": message}}, _line(Severity.UNKNOWN, message))
        return Severity.UNKNOWN
    severity = _severity(summary)
    checked = {"status": severity.name.lower(), "message": _text(summary)}
    report("status", summary | {"check": checked}, _line(severity, _text(summary), _performance(summary)))
    return severity


def _severity(summary: dict[str, Any]) -> Severity:
    from kimbox.machine.problems import Severity

    if summary["problems"] is None:  # there is no machine
        return Severity.UNKNOWN
    return max((Severity[problem["severity"].upper()] for problem in summary["problems"]), default=Severity.OK)


def _text(summary: dict[str, Any]) -> str:
    """Returns the text of the line: name and state, and the problems."""
    details = [problem["detail"] for problem in summary["problems"] or ()]
    return f"{summary['name']} is {summary['state']}" + "".join(f"; {detail}" for detail in details)


def _performance(summary: dict[str, Any]) -> list[str]:
    """Returns the performance data: fill levels, ages and the counts of jobs."""
    from kimbox.machine.problems import (
        LINK_S,
        SNAPSHOT_CRITICAL,
        SNAPSHOT_WARNING,
        SPACE_CRITICAL,
        SPACE_WARNING,
    )  # fmt: skip

    health = summary["health"] or {}
    data = [
        f"'{space['mount']}'={space['used_percent']}%;{SPACE_WARNING};{SPACE_CRITICAL}"
        for space in health.get("spaces") or ()
    ]
    if (percent := health.get("snapshot_percent")) is not None:
        data.append(f"'snapshot'={percent}%;{SNAPSHOT_WARNING};{SNAPSHOT_CRITICAL}")
    if (age_s := health.get("link_age_s")) is not None:
        data.append(f"'link_age'={age_s}s;;{LINK_S:.0f}")
    if (age_s := health.get("last_job_age_s")) is not None:
        data.append(f"'last_job_age'={age_s}s")
    return data + [f"'jobs_{name}'={count}" for name, count in (summary["jobs"] or {}).items()]


def _line(severity: Severity, text: str, performance: list[str] | None = None) -> str:
    """Returns the line. Texts of a guest cannot add a line, or performance data of their own."""
    text = " ".join(text.replace("|", "/").split())[:MAX_TEXT]
    return f"KIMBOX {severity.name} - {text}" + (f" | {' '.join(performance)}" if performance else "")
