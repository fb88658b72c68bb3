"""kimbox list: list all boxes of this user."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kimbox.cli import lifetimes
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
    """List all boxes of this user: state, address of the ssh server, disk, spec, where each was saved, and what remains
    of its lifetime. Then the templates from which clones start.

    A box whose lifetime has ended and whose save failed is NOT SAVED, with the reason; its disk is there.

    \b
    Examples:
      kimbox list
      kimbox list --json
    """
    import attrs

    from kimbox.machine import templates as stores
    from kimbox.machine.folder import machines
    from kimbox.machine.state import State

    found = machines()
    with ThreadPoolExecutor(MAX_OBSERVERS) as observers:
        waiting = {machine: observers.submit(log.attach(_summary), machine) for machine in found if _waits(machine)}
        results = [waiting[machine].result() if machine in waiting else _summary(machine) for machine in found]
    summaries = [summary for summary in results if summary is not None]
    header = ["NAME", "STATE", "SSH", "DISK", "SPEC", "SAVED", "REMAINS"]
    rows = [header]
    for summary in summaries:
        rows.append(
            [
                summary["name"],
                f"sealed: {summary['sealed']['role']}"
                if summary["state"] == "sealed" and summary["sealed"]
                else summary["state"],
                f"{summary['ssh_host']}:{summary['ssh_port']}",
                _disk(summary),
                summary["spec"],
                summary["saved"]["url"] if summary["saved"] else "",
                lifetimes.words(summary),
            ]
        )
    empty = {column for column in (5, 6) if not any(row[column] for row in rows[1:])}
    rows = [[cell for column, cell in enumerate(row) if column not in empty] for row in rows]
    text = table(rows) if summaries else "there are no boxes (`kimbox up minimal` creates one)"
    if summaries and not any(State(summary["state"]).running for summary in summaries):
        text += "\nNo boxes are running"
    templates = stores.every()
    if templates:
        rows = [["TEMPLATE", "BOX", "DISK", "CLONES"]]
        for template in templates:
            clones = sum(summary["template"] == template.key for summary in summaries)
            size = f"{template.size_bytes / 1e6:.0f} MB"
            rows.append([template.key[:16], template.box or "damaged", size, str(clones)])
        text += "\n\n" + table(rows)
    report("list", {"boxes": summaries, "templates": [attrs.asdict(template) for template in templates]}, text)


def _waits(machine: Machine) -> bool:
    """Whether another program must answer. Threads would only take turns with the files of the other machines."""
    from kimbox.drivers import registry

    return machine.running or not registry.of(machine).features.own_process


def _summary(machine: Machine) -> dict[str, Any] | None:
    """Returns the summary of a machine. None, with a warning, if it is damaged: it must not hide the others."""
    try:
        summary = summary_of(machine)
    except KimboxError as error:
        log.warn(str(error) + (f" ({error.hint})" if error.hint else ""))
        return None
    except OSError as error:
        log.warn(f"{machine.name} cannot be read: {error}")
        return None
    return None if summary["state"] == "absent" else summary  # it was destroyed since machines() listed it


def _disk(summary: dict[str, Any]) -> str:
    """Returns the space that a disk takes; the name of the driver if kimbox does not own the disk."""
    size_bytes = summary["disk_bytes"]
    return str(summary["provider"]) if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"
