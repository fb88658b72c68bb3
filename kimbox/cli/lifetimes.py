"""What keeps a box and what ends it, in the output of `status` and `list`: its last save, lifetime and service."""

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


def service_of(machine: Machine) -> dict[str, Any] | None:
    """Returns what systemd reports of the service of a machine; None if it has none, or systemd does not answer."""
    import attrs

    from kimbox.actions import service
    from kimbox.errors import KimboxError
    from kimbox.log import log

    try:
        found = service.service(machine.name)
    except KimboxError as error:
        log.warn(str(error))
        return None
    return attrs.asdict(found) | {"gave_up": found.gave_up} if found else None


def lines(summary: dict[str, Any]) -> list[str]:
    """Returns the lines of `kimbox status` about save, lifetime and service."""
    found = []
    if saved := summary["saved"]:
        found.append(f"  saved       {saved['at']}, number {saved['number']} in {saved['url']}")
    if summary["lifetime"]:
        found.append(f"  lifetime    {words(summary)}")
    if service := summary["service"]:
        starts = f", started again {service['restarts']} times" if service["restarts"] else ""
        ended = f" ({service['result']}): it is not started again" if service["gave_up"] else ""
        found.append(f"  service     {service['state']}{ended}{starts}")
    return found


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
