"""kimbox list: every box of this user."""

from __future__ import annotations

from kimbox.cli.output import report, table
from kimbox.cli.status import facts_of
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
            facts = facts_of(machine)
        except KimboxError as error:  # a damaged one does not hide the others
            log.warn(str(error) + (f" ({error.hint})" if error.hint else ""))
            continue
        if facts["state"] != "absent":  # destroyed just now
            found.append(facts)
    rows = [["NAME", "STATE", "SSH", "DISK", "SPEC"]]
    for facts in found:
        rows.append(
            [
                facts["name"],
                f"sealed: {facts['sealed']['role']}"
                if facts["state"] == "sealed" and facts["sealed"]
                else facts["state"],
                str(facts["ssh_port"]),
                "libvirt" if facts["disk_bytes"] is None else f"{facts['disk_bytes'] / 1e6:.0f} MB",
                facts["spec"],
            ]
        )
    report("list", {"boxes": found}, table(rows) if found else "there are no boxes; `kimbox up minimal` makes one")
