"""The lifetime of a box in the output of `status` and `list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kimbox.machine.folder import Machine


def lifetime_of(machine: Machine) -> dict[str, Any] | None:
    """Returns the lifetime of a machine; None if it has none, or its file is damaged, which is a warning."""
    import time

    from kimbox.errors import KimboxError
    from kimbox.log import log
    from kimbox.machine.life import read_life

    try:
        lifetime = read_life(machine).lifetime
    except KimboxError as error:
        log.warn(str(error))
        return None
    return lifetime.as_json(time.time()) if lifetime else None


def words(summary: dict[str, Any]) -> str:
    """Returns what remains of the lifetime of a box, from its summary; nothing if it has none."""
    from kimbox.machine.life import duration_words

    lifetime = summary["lifetime"]
    if lifetime is None:
        return ""
    if lifetime["ended_at"]:
        return "ended, saved" if summary["saved"] else "ended"
    if lifetime["failure"]:
        return f"ended, NOT SAVED: {lifetime['failure']}"
    return duration_words(lifetime["remaining_s"]) if lifetime["remaining_s"] else "ends now"
