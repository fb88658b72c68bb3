"""kimbox list: every box of this user."""

from __future__ import annotations

from kimbox.cli.output import report, table
from kimbox.cli.status import summary_of
from kimbox.errors import KimboxError
from kimbox.log import log


def list_() -> None:
    """List every box there is, with its state and where it came from.

    \b
    Examples:
      kimbox list
      kimbox list --json
    """
    from kimbox.machine.folder import machines

    found = []
    for machine in machines():
        try:
            summary = summary_of(machine)
        except KimboxError as error:  # a damaged one does not hide the others
            log.warn(str(error) + (f" ({error.hint})" if error.hint else ""))
            continue
        if summary["state"] != "absent":  # destroyed just now
            found.append(summary)
    rows = [["NAME", "STATE", "SSH", "DISK", "SPEC"]]
    for summary in found:
        rows.append(
            [
                summary["name"],
                f"sealed: {summary['sealed']['role']}"
                if summary["state"] == "sealed" and summary["sealed"]
                else summary["state"],
                str(summary["ssh_port"]),
                "libvirt" if summary["disk_bytes"] is None else f"{summary['disk_bytes'] / 1e6:.0f} MB",
                summary["spec"],
            ]
        )
    report("list", {"boxes": found}, table(rows) if found else "there are no boxes; `kimbox up minimal` makes one")
