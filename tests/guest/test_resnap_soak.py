"""A box that reboots many times in resnap mode. Only `script/test soak` runs this test, because it is slow."""

from __future__ import annotations

import pytest
from conftest import Kimbox, until

pytestmark = [pytest.mark.guest, pytest.mark.soak]

NAME = "soaked"

REBOOTS = 50

SPEC = "boot: resnap\nresnap: {keep: nothing}\nprovision: [{name: mark, script: 'touch /provisioned'}]\n"


def test_fifty_resnap_reboots_in_a_row(kimbox: Kimbox) -> None:
    """Each boot has a root without the changes and the provisioning of the last boot, and provisions it."""
    kimbox.spec(NAME, SPEC)
    kimbox("up")
    machine = kimbox.machine(NAME)
    for reboot in range(REBOOTS):
        before = machine.boot_events()[-1].boot
        kimbox.sh(NAME, "ls /provisioned; test ! -e /changed; sudo touch /changed /persistent/kept; sync")
        kimbox("exec", "--", "sudo", "systemctl", "reboot", check=False)
        until(f"boot {reboot + 1}", lambda old=before: machine.boot_events()[-1].boot != old)  # type: ignore[misc]
        until(
            f"boot {reboot + 1} to be ready",
            lambda: any(event.name in ("ready", "failed") for event in machine.boot_events()),
        )
        events = {event.name: event for event in machine.boot_events()}
        assert "ready" in events, f"after {reboot} reboots: {events}"
        assert events["booting"].text("mode") == "resnap"
        assert "provisioning" in events
    assert kimbox.sh(NAME, "ls /changed /persistent/kept 2>/dev/null || true") == "/persistent/kept\n"
    kimbox("destroy", "-y")
