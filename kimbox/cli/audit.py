"""kimbox audit: check how well a box is sealed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report
from kimbox.errors import GuestError, KimboxError

if TYPE_CHECKING:
    from kimbox.actions.audit import Audited
    from kimbox.guest.audit import Check, Comparison, Report

#: The line of a report that is too old, or whose age is not known.
STALE = "STALE: a running box sends a report every 15 minutes; the time of this one is too far from that of this host"


def audit(
    box: target.Name = None,
    file: target.File = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="REPORT", help="Show the differences from an earlier report."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write the report to a file, as JSON.")
    ] = None,
) -> None:
    """Check how well a box is sealed: sockets, firewall, accounts, files, secrets, mounts, kernel, services, packages.

    Each check shows the expected and the actual state, the severity, the remedy and, if there is one, its number in the
    CIS Debian Linux 12 Benchmark. Failed checks are shown; with --verbose, all checks. The exit status is 1 if a check
    of severity high or medium failed.

    kimbox audits an open box over ssh. The checks are those for a sealed box, so an open box usually fails. A sealed
    box accepts no login. It audits itself after each start and every 15 minutes, and sends the report to the host. Only
    a whole report of the present boot counts. The output shows its age. If the box runs and its report is too old, the
    exit status is 1, too. If the present boot failed to seal the box, it is 4. A report comes from the box itself: an
    intruder with root could change it. Only boot.sealed and disk.equal come from the host. disk.equal compares the disk
    of a sealed box, except /persistent, with its image: the disk of a box that runs was compared before its start.

    --compare takes a file that --save or --json wrote, from an earlier time or from another box.

    The JSON has: name, source (origin of the report), stale (true if the report is too old), unsealed (why the present
    boot did not seal the box; null otherwise), report, breaches (ids of failed checks of severity high or medium),
    counts (checks of each status) and compared (ids of checks that appeared, were mended or are the same; null without
    --compare).

    \b
    Examples:
      kimbox audit
      kimbox audit --save open.json && kimbox secure && kimbox audit --compare open.json
      kimbox audit openkim-worker --json
    """
    from kimbox.actions import audit as auditing
    from kimbox.files import write_json
    from kimbox.guest import audit as audits
    from kimbox.log import log

    earlier_report = auditing.read(compare) if compare else None
    machine = target.machine(box, file)
    audited = auditing.report(machine)
    audit_report = audited.report
    if save:
        write_json(save, audit_report.as_json())
    comparison = audits.compare(earlier_report, audit_report) if earlier_report else None
    lines = [
        _head(machine.name, audit_report, audited.source),
        *_failed(audit_report),
        *(_not_failed(audit_report) if log.verbose else []),
        *(_changes(comparison) if comparison else []),
        *([STALE] if audited.stale else []),
        _counts(audit_report),
    ]
    report("audit", _result(machine.name, audited, comparison), "\n".join(map(printable, lines)))
    if status := _exit_status(audited):
        raise typer.Exit(status)


def _exit_status(audited: Audited) -> int:
    """Returns the exit status of the verb: that of the worst fault of an audit."""
    if audited.unsealed is not None:
        return GuestError.exit_code
    return KimboxError.exit_code if audited.report.breaches or audited.stale else 0


def _result(name: str, audited: Audited, comparison: Comparison | None) -> dict[str, Any]:
    """Returns the JSON result, as described by schemas/audit.schema.json."""
    from kimbox.guest.audit import Status

    audit_report = audited.report
    return {
        "name": name,
        "source": audited.source,
        "stale": audited.stale,
        "unsealed": audited.unsealed,
        "report": audit_report.as_json(),
        "breaches": [check.id for check in audit_report.breaches],
        "counts": {str(status): len(audit_report.of(status)) for status in Status},
        "compared": _ids(comparison) if comparison else None,
    }


def _head(name: str, audit_report: Report, source: str) -> str:
    role = f", {audit_report.role}" if audit_report.role else ""
    return f"{name}{role}{f' of {audit_report.site}' if audit_report.site else ''}: {source}"


def _failed(audit_report: Report) -> list[str]:
    """Returns the failed checks with their remedies, the most severe first."""
    from kimbox.guest.audit import Severity, Status

    order = list(Severity)
    lines = []
    for check in sorted(audit_report.of(Status.FAIL), key=lambda check: order.index(check.severity)):
        lines += [
            f"FAIL {check.severity:<6}  {_title(check)}",
            f"             expected  {check.expected}",
            f"             found     {check.found}",
            *([f"             remedy    {check.remedy}"] if check.remedy else []),
        ]
    return lines


def _not_failed(audit_report: Report) -> list[str]:
    from kimbox.guest.audit import Status

    checks = [check for check in audit_report.checks if check.status is not Status.FAIL]
    return [f"{check.status:<4} {check.severity:<6}  {_title(check)}: {check.found}" for check in checks]


def _title(check: Check) -> str:
    return f"{check.id}  {check.title}{f' [CIS {check.cis}]' if check.cis else ''}"


def _changes(comparison: Comparison) -> list[str]:
    lines = [f"appeared  {_title(check)}" for check in comparison.appeared]
    lines += [f"mended    {_title(check)}" for check in comparison.mended]
    lines += [f"the same  {_title(check)}" for check in comparison.same]
    return lines or ["no check failed in either report"]


def _ids(comparison: Comparison) -> dict[str, Any]:
    return {
        "appeared": [check.id for check in comparison.appeared],
        "mended": [check.id for check in comparison.mended],
        "same": [check.id for check in comparison.same],
    }


def _counts(audit_report: Report) -> str:
    """Returns the number of checks of each status, as one line."""
    from kimbox.guest.audit import Status

    failed, breaches = len(audit_report.of(Status.FAIL)), len(audit_report.breaches)
    decided = f"{len(audit_report.of(Status.PASS))} passed, {failed} failed ({breaches} of them breaches)"
    undecided = f"{len(audit_report.of(Status.INFO))} for information, {len(audit_report.of(Status.SKIP))} skipped"
    return f"{len(audit_report.checks)} checks: {decided}, {undecided}"
