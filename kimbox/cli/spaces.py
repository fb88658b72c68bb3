"""What a box has beside its disk, for `kimbox status`: scratch space and folders of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kimbox.machine.folder import Machine
    from kimbox.machine.record import Record


def spaces_of(machine: Machine, record: Record) -> dict[str, Any]:
    """Returns the keys `scratch` and `mounts` of a summary, as of the last start.

    `is_served` of a mount: whether its virtiofsd runs.
    """
    import attrs

    from kimbox.machine import mounts

    return {
        "scratch": attrs.asdict(record.scratch) if record.scratch else None,
        "mounts": [
            {
                "location": str(mount.location),
                "mount_point": mount.mount_point,
                "writable": mount.writable,
                "is_served": mounts.is_served(machine, number),
            }
            for number, mount in enumerate(record.mounts)
        ],
    }


def lines(summary: dict[str, Any]) -> list[str]:
    """Returns the lines of these keys in the output of `status`."""
    lines = []
    for mount in summary["mounts"] or ():
        access = "writable" if mount["writable"] else "read-only"
        lines.append(f"  mount       {mount['location']} -> {mount['mount_point']}, {access}")
    if scratch := summary["scratch"]:
        lines.append(f"  scratch     {scratch['size_bytes'] / 1e6:.0f} MB at {scratch['mount']} in the guest")
    return lines


def lost(machine: Machine, record: Record) -> list[tuple[str, str]]:
    """Returns the code and the detail of a problem for each folder of the host that a box which runs has lost."""
    from kimbox.machine import mounts

    repair = f"`kimbox reload {machine.name}` serves it again"
    return [
        ("mount-lost", f"{mount.location} at {mount.mount_point} is not served: {repair}")
        for number, mount in enumerate(record.mounts)
        if not mounts.is_served(machine, number)
    ]
