"""kimbox list: list all boxes of this user."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kimbox.cli.output import report, table
from kimbox.cli.status import summary_of
from kimbox.errors import KimboxError
from kimbox.log import log

if TYPE_CHECKING:
    from kimbox.machine.folder import Machine

#: Maximum number of machines that kimbox observes at the same time. QEMU may need seconds to answer, and Vagrant is a
#: process.
MAX_OBSERVERS = 8


def list_() -> None:
    """List all boxes of this user, with their states and the specs that they were made from, and the templates from
    which clones start.

    \b
    Examples:
      kimbox list
      kimbox list --json
    """
    import attrs

    from kimbox.machine import templates as stores
    from kimbox.machine.folder import machines

    with ThreadPoolExecutor(MAX_OBSERVERS) as observers:
        summaries = [summary for summary in observers.map(log.attach(_summary), machines()) if summary is not None]
    rows = [["NAME", "STATE", "SSH", "DISK", "SPEC", "SAVED"]]
    for summary in summaries:
        rows.append(
            [
                summary["name"],
                f"sealed: {summary['sealed']['role']}"
                if summary["state"] == "sealed" and summary["sealed"]
                else summary["state"],
                str(summary["ssh_port"]),
                _disk(summary),
                summary["spec"],
                summary["saved"]["url"] if summary["saved"] else "",
            ]
        )
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    text = table(rows) if summaries else "there are no boxes (`kimbox up minimal` creates one)"
    templates = stores.every()
    if templates:
        rows = [["TEMPLATE", "BOX", "DISK", "CLONES"]]
        for found in templates:
            clones = sum(summary["template"] == found.key for summary in summaries)
            rows.append([found.key[:16], found.box or "damaged", f"{found.size_bytes / 1e6:.0f} MB", str(clones)])
        text += "\n\n" + table(rows)
    report("list", {"boxes": summaries, "templates": [attrs.asdict(found) for found in templates]}, text)


def _summary(machine: Machine) -> dict[str, Any] | None:
    """Returns the summary of a machine. None, with a warning, if it is damaged: it must not hide the others."""
    try:
        summary = summary_of(machine)
    except KimboxError as error:
        log.warn(str(error) + (f" ({error.hint})" if error.hint else ""))
        return None
    return None if summary["state"] == "absent" else summary  # it was destroyed since machines() listed it


def _disk(summary: dict[str, Any]) -> str:
    """Returns the space that a disk takes; the name of the driver if kimbox does not own the disk."""
    size_bytes = summary["disk_bytes"]
    return str(summary["provider"]) if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"
