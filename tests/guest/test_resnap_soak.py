"""Slow: `script/test soak` alone runs it. One box restarts itself again and again, and is pristine each time."""

from __future__ import annotations

import pytest
from conftest import Kimbox, until

pytestmark = [pytest.mark.guest, pytest.mark.soak]

NAME = "soaked"

REBOOTS = 50

SPEC = "boot: resnap\nprovision: [{name: mark, script: 'touch /provisioned'}]\n"


def test_fifty_resnap_reboots_in_a_row(kimbox: Kimbox) -> None:
    """Each boot finds neither what the last one changed nor what it provisioned, and provisions again."""
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
        told = {event.name: event for event in machine.boot_events()}
        assert "ready" in told, f"after {reboot} reboots: {told}"
        assert told["booting"].text("mode") == "resnap"
        assert "provisioning" in told
    assert kimbox.sh(NAME, "ls /changed /persistent/kept 2>/dev/null || true") == "/persistent/kept\n"
    kimbox("destroy", "-y")
