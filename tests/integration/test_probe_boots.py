"""The guest of the probe of the accelerator, in a real QEMU. Emulation is enough to see that the firmware boots it."""

from __future__ import annotations

from kimbox.drivers.accelerator import EMULATED_CPU, probe_failure
from kimbox.node.__main__ import capabilities


def test_the_guest_of_the_probe_boots() -> None:
    """A guest that the firmware does not boot would look like a KVM that hangs, on every host."""
    assert None is probe_failure("tcg", EMULATED_CPU, timeout_s=120)


def test_a_node_reports_what_it_can_do() -> None:
    """The lines are ClassAd attributes, and `-` ends them. A KVM that hangs or fails does not make a node unusable."""
    *lines, end = capabilities().splitlines()
    facts = dict(line.split(" = ", 1) for line in lines)
    assert ("true", "-") == (facts["HasKimboxVM"], end)
    assert facts["KimboxAccelerator"] in ('"kvm"', '"tcg"')
    assert "QEMU" in facts["KimboxQemu"]
