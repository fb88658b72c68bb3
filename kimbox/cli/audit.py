"""kimbox audit: how well a box is closed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report
from kimbox.errors import KimboxError

if TYPE_CHECKING:
    from kimbox.actions.audit import Audited
    from kimbox.guest.audit import Check, Comparison, Report


def audit(
    box: target.Name = None,
    file: target.File = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="REPORT", help="Show what changed since this report."),
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the report, as JSON.")] = None,
) -> None:
    """Show how well a box is closed: sockets, firewall, accounts, files, secrets, mounts, kernel, services, packages.

    Each check says what was expected and found, how bad it is, what to do, and its number in the CIS Debian Linux 12
    Benchmark where it has one. Failed checks are shown, with --verbose all. The exit status is 1 where a failed check
    is of severity high or medium.

    An open box is asked over ssh, and most likely fails: the checks are those for a sealed box. A sealed box, which
    nobody enters, audits itself when it has started and every quarter of an hour, and tells the host; the report says
    how old it is, and one that is too old for a box that runs is a breach, too. It is the box's own word.

    --compare takes a file that --save or --json wrote, of another time or another box.

    In its JSON: name, source (where the report comes from), stale (whether it is too old), report, breaches (ids),
    counts (of each status) and compared (ids of what appeared, was mended and is the same; null without --compare).

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

    before = auditing.read(compare) if compare else None
    machine = target.machine(box, file)
    audited = auditing.report(machine)
    found, source = audited.report, audited.source
    if save:
        write_json(save, found.as_json())
    changed = audits.compare(before, found) if before else None
    lines = [
        _head(machine.name, found, source),
        *_failed(found),
        *(_others(found) if log.verbose else []),
        *(_changes(changed) if changed else []),
        *(
            ["STALE: a box that runs tells every quarter of an hour; this says nothing of it now"]
            if audited.stale
            else []
        ),
        _sum(found),
    ]
    report("audit", _result(machine.name, audited, changed), "\n".join(map(printable, lines)))
    if found.breaches or audited.stale:
        raise typer.Exit(KimboxError.exit_code)


def _result(name: str, audited: Audited, changed: Comparison | None) -> dict[str, Any]:
    """As schemas/audit.schema.json has it."""
    from kimbox.guest.audit import Status

    found = audited.report
    return {
        "name": name,
        "source": audited.source,
        "stale": audited.stale,
        "report": found.as_json(),
        "breaches": [check.id for check in found.breaches],
        "counts": {str(status): len(found.of(status)) for status in Status},
        "compared": _ids(changed) if changed else None,
    }


def _head(name: str, found: Report, source: str) -> str:
    role = f", {found.role}" if found.role else ""
    return f"{name}{role}{f' of {found.site}' if found.site else ''}: {source}"


def _failed(found: Report) -> list[str]:
    """The failed checks, the worst first, each with what to do."""
    from kimbox.guest.audit import Severity, Status

    order = list(Severity)
    lines = []
    for check in sorted(found.of(Status.FAIL), key=lambda check: order.index(check.severity)):
        lines += [
            f"FAIL {check.severity:<6}  {_title(check)}",
            f"             expected  {check.expected}",
            f"             found     {check.found}",
            *([f"             remedy    {check.remedy}"] if check.remedy else []),
        ]
    return lines


def _others(found: Report) -> list[str]:
    from kimbox.guest.audit import Status

    rest = [check for check in found.checks if check.status is not Status.FAIL]
    return [f"{check.status:<4} {check.severity:<6}  {_title(check)}: {check.found}" for check in rest]


def _title(check: Check) -> str:
    return f"{check.id}  {check.title}{f' [CIS {check.cis}]' if check.cis else ''}"


def _changes(changed: Comparison) -> list[str]:
    lines = [f"appeared  {_title(check)}" for check in changed.appeared]
    lines += [f"mended    {_title(check)}" for check in changed.mended]
    lines += [f"the same  {_title(check)}" for check in changed.same]
    return lines or ["no check failed, then or now"]


def _ids(changed: Comparison) -> dict[str, Any]:
    return {
        "appeared": [check.id for check in changed.appeared],
        "mended": [check.id for check in changed.mended],
        "same": [check.id for check in changed.same],
    }


def _sum(found: Report) -> str:
    from kimbox.guest.audit import Status

    failed, breaches = len(found.of(Status.FAIL)), len(found.breaches)
    judged = f"{len(found.of(Status.PASS))} passed, {failed} failed ({breaches} of them breaches)"
    rest = f"{len(found.of(Status.INFO))} for information, {len(found.of(Status.SKIP))} skipped"
    return f"{len(found.checks)} checks: {judged}, {rest}"
