"""Runs a sweep for `kimbox job run --each`, and prints its table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimbox.cli.output import printable, report, table
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.jobs.request import RunRequest
    from kimbox.actions.jobs.sweep import Result, SweepDone
    from kimbox.jobs.items import Item

#: The name of stdin as a file with items.
STDIN = "-"

#: Maximum number of characters of an item in the table.
SHOWN_CHARACTERS = 60


def run_sweep(job: RunRequest, each: str, *, at_a_time: int | None, retries_failed: bool, fails_fast: bool) -> int:
    """Runs the sweep over the items of a file, and prints its table. Returns the exit status."""
    from kimbox.actions.jobs import sweep
    from kimbox.jobs.result import NOT_OK_STATUS

    request = sweep.SweepRequest(job, read_items(each), at_a_time, retries_failed, fails_fast)
    done = sweep.sweep(request)
    _print(done)
    return 0 if all(result.is_ok for result in done.results) else NOT_OK_STATUS


def read_items(each: str) -> list[Item]:
    """Returns the items of --each. Raises UsageError (`bad-items`)."""
    from kimbox.files import open_regular
    from kimbox.jobs import items

    if each == STDIN:
        return items.parse(sys.stdin.buffer.read(items.MAX_BYTES + 1), "stdin")
    path = Path(each)
    if not path.exists():
        raise UsageError(
            f"--each: file {each} not found",
            code="usage",
            hint="write the items into a file, one in each line, or pass them to `--each -`",
            fields={"path": each},
        )
    with open_regular(path) as file:
        return items.parse(file.read(items.MAX_BYTES + 1), each)


def _print(done: SweepDone) -> None:
    """Prints one row for each item, and the counts."""
    rows = [_row(result) for result in done.results]
    ok = sum(result.is_ok for result in done.results)
    missing = sum(result.record is None for result in done.results)
    counts = {"items": len(rows), "ok": ok, "not_ok": len(rows) - ok - missing, "missing": missing, "ran": done.ran}
    result = {"path": str(done.output), **counts, "results": rows}
    cells = [["item", "verdict", "status", "time", "memory", "folder"]]
    cells += [[_cell(row[key]) for key in ("item", "verdict", "status", "run_s", "memory", "folder")] for row in rows]
    last = f"{ok} of {len(rows)} are ok; the results are in {done.output}"
    if counts["not_ok"]:
        last += f"; --retry-failed does the {counts['not_ok']} again that are not"
    report("job", result, f"{table(cells)}\n\n{printable(last)}")


def _row(result: Result) -> dict[str, Any]:
    """Returns an item for the table and for --json."""
    record = result.record or {}
    return {
        "item": result.item.text,
        "folder": result.item.folder,
        "verdict": record.get("verdict"),
        "status": record.get("status"),
        "run_s": record.get("run_s"),
        "memory": record.get("memory_peak_bytes"),
    }


def _cell(value: Any) -> str:
    """Returns a value as a cell. Items come from a file, and records from a folder that others may have changed."""
    from kimbox.files import size_words

    if isinstance(value, bool) or value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f} s"
    if isinstance(value, int):
        return str(value) if value < 1 << 10 else size_words(value)
    return printable(str(value)[:SHOWN_CHARACTERS])
