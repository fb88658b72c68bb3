"""A box that hangs is reset by its watchdog; one whose memory is full is not."""

from __future__ import annotations

import signal

import pytest
from conftest import Kimbox, until
from frozen import freeze

from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

#: Stops systemd, which then does not feed the watchdog: its control group is frozen. The kernel works.
STOP_SYSTEMD = "sync; sudo sh -c 'echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze'"

#: Takes all memory. The kernel kills this program, and nothing else.
FILL_MEMORY = "sudo swapoff -a; exec perl -e '$x .= \"x\" x (1 << 22) while 1'"


@pytest.mark.parametrize("part", ["systemd", pytest.param("kernel", marks=pytest.mark.soak)])
def test_a_box_that_hangs_is_reset(kimbox: Kimbox, part: str) -> None:
    """QEMU resets it, the process stays, and the status says what happened until the next start."""
    kimbox.spec("hanging", "watchdog: 20s\nmemory: 512MiB\n")
    kimbox("up")
    before = kimbox.json("status")
    assert [] == before["problems"]
    machine = Machine("hanging")
    boot = machine.boot_events()[0].boot
    until("systemd feeds it", lambda: kimbox.sh("hanging", "systemctl show -P RuntimeWatchdogUSec").strip() == "20s")
    if part == "kernel":
        assert 128 + signal.SIGKILL == kimbox("exec", "hanging", "--", "sh", "-c", FILL_MEMORY, check=False).code
        assert (boot, []) == (machine.boot_events()[-1].boot, kimbox.json("status")["problems"])
        freeze(machine)
    else:
        kimbox.sh("hanging", STOP_SYSTEMD)
    until("the reset", lambda: "watchdog" in {event.name for event in machine.boot_events()})
    assert boot != machine.boot_events()[0].boot
    kimbox("up")
    after = kimbox.json("status")
    assert ("ready", before["pid"]) == (after["state"], after["pid"])
    assert ["hung"] == [problem["code"] for problem in after["problems"]]
    kimbox("reload")
    assert [] == kimbox.json("status")["problems"]
    kimbox("destroy", "-y")
