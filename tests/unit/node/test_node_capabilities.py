"""What a node of a pool advertises."""

from __future__ import annotations

import pytest

from kimbox.drivers import accelerator
from kimbox.drivers.accelerator import KVM_WORKS
from kimbox.jobs.backends.htcondor import description, nodeconfig
from kimbox.node import __main__ as runner
from kimbox.node import guest


def facts(monkeypatch: pytest.MonkeyPatch, *, is_installed: bool = True, failure: str | None = None) -> dict[str, str]:
    """The attributes of a node whose probes end so; without a failure, KVM works."""
    monkeypatch.setattr(runner, "which", lambda name: name if is_installed else None)
    chosen = accelerator.EMULATED if failure else KVM_WORKS
    monkeypatch.setattr(accelerator, "probe", lambda: chosen)
    monkeypatch.setattr(accelerator, "probe_failure", lambda *_, **__: failure)
    monkeypatch.setattr(guest, "version", lambda: 'QEMU "10"\n')
    return dict(line.split(" = ", 1) for line in runner.capabilities().splitlines() if " = " in line)


def test_a_good_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM works. Text is quoted, and has no line break."""
    found = facts(monkeypatch)
    assert ("true", '"kvm"', '"KVM works"') == tuple(
        found[key] for key in (description.CAPABLE, "KimboxAccelerator", "KimboxReason")
    )
    assert r'"QEMU \"10\" "' == found["KimboxQemu"]


def test_nodes_that_run_no_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is missing, or no guest runs: jobs avoid the node, and the reason is there."""
    assert ("false", '"none"') == tuple(
        facts(monkeypatch, failure="it hangs")[key] for key in (description.CAPABLE, "KimboxAccelerator")
    )
    assert "is missing" in facts(monkeypatch, is_installed=False)["KimboxReason"]


def test_the_configuration_starts_the_probe() -> None:
    """The cron has the program and its argument; images are kept where the runner looks for the folder."""
    text = nodeconfig.configuration()
    assert f"_EXECUTABLE = {nodeconfig.PROGRAM_PATH}\n" in text
    assert f"_ARGS = {runner.PROBE}\n" in text
    assert 'STARTER_JOB_ENVIRONMENT = "KIMBOX_NODE_CACHE=' in text
