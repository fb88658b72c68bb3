"""A box that hangs is reset by its watchdog."""

from __future__ import annotations

import pytest
from conftest import Kimbox, until

from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

#: Stops systemd, which then does not feed the watchdog: its control group is frozen.
HANG = "sync; sudo sh -c 'echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze'"


def test_a_box_that_hangs_is_reset(kimbox: Kimbox) -> None:
    """QEMU resets it, the process stays, and the status says what happened until the next start."""
    kimbox.spec("hanging", "watchdog: 20s\n")
    kimbox("up")
    before = kimbox.json("status")
    assert [] == before["problems"]
    boot = Machine("hanging").boot_events()[0].boot
    until("systemd feeds it", lambda: kimbox.sh("hanging", "systemctl show -P RuntimeWatchdogUSec").strip() == "20s")
    kimbox.sh("hanging", HANG)
    until("the reset", lambda: "watchdog" in {event.name for event in Machine("hanging").boot_events()})
    assert boot != Machine("hanging").boot_events()[0].boot
    kimbox("up")
    after = kimbox.json("status")
    assert ("ready", before["pid"]) == (after["state"], after["pid"])
    assert ["hung"] == [problem["code"] for problem in after["problems"]]
    kimbox("reload")
    assert [] == kimbox.json("status")["problems"]
    kimbox("destroy", "-y")
