"""Runs a job in several boxes for `kimbox job run --box A --box B`, and prints the table that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kimbox.cli import target
from kimbox.cli.output import printable, report, table
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.jobs.boxes import BoxResult
    from kimbox.actions.jobs.request import RunRequest
    from kimbox.project.project import Project

#: Number of digits of a digest in the table, and maximum number of files that a row names.
SHOWN_DIGITS, MAX_NAMED = 12, 3


def run_on_boxes(request: RunRequest, names: Sequence[str]) -> int:
    """Runs the job in each box and prints the table. Returns the exit status. Raises UsageError for a name twice."""
    from kimbox.actions.jobs.boxes import run_on
    from kimbox.jobs.result import INTERRUPTED_STATUS, NOT_OK_STATUS, Outcome

    if len(set(names)) < len(names):
        raise UsageError("a box is given twice", code="usage", fields={"option": "--box"})
    projects: dict[str, Project] = {}
    for name in names:
        project = target.saved_or_box(name, None)
        if project.name in projects:
            raise UsageError(f"two of the boxes have the name {project.name}", code="usage", fields={"option": "--box"})
        projects[project.name] = project
    results = run_on(request, projects)
    rows = [["box", "verdict", "status", "time", "output", "differs from the first box in"], *map(_row, results)]
    text = f"{table(rows)}\nthe results are in {request.output}"
    report("job", {"path": str(request.output), "boxes": list(map(_as_json, results))}, text)
    if results[-1].verdict.outcome is Outcome.INTERRUPTED:
        return INTERRUPTED_STATUS
    return 0 if all(result.verdict.outcome is Outcome.OK for result in results) else NOT_OK_STATUS


def _row(result: BoxResult) -> list[str]:
    from kimbox.image.disk.ext4.directories import shown

    time_s = result.done.record["run_s"] if result.done else None
    named = ", ".join(shown(one.path) for one in result.differences[:MAX_NAMED])
    more = len(result.differences) - MAX_NAMED
    digits = result.digest.removeprefix("sha256:")[:SHOWN_DIGITS]
    verdict = result.verdict
    cells = [
        result.box,
        f"{verdict.outcome}{f': {verdict.reason}' if verdict.reason and not result.done else ''}",
        str(verdict.status),
        "-" if time_s is None else f"{time_s:.1f} s",
        digits,
        f"{named} and {more} more" if more > 0 else named or "-",
    ]
    return list(map(printable, cells))


def _as_json(result: BoxResult) -> dict[str, Any]:
    from kimbox.image.disk.ext4.directories import shown

    return {
        "box": result.box,
        "verdict": str(result.verdict.outcome),
        "status": result.verdict.status,
        "reason": result.verdict.reason or None,
        "output": result.digest,
        "differences": [{"path": shown(one.path), "kind": one.kind} for one in result.differences],
        "job": result.done.record if result.done else None,
    }
