"""A guest that QEMU stops because of an error of the host: its state, the reason, and how it continues."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import bootsector
import makemachine
import pytest
from waiting import until

from kimbox import run
from kimbox.actions import observe
from kimbox.drivers.accelerator import KVM_WORKS, find
from kimbox.drivers.qemu import driver, process
from kimbox.drivers.qemu.driver import Qemu
from kimbox.machine.state import State


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mounts a small file system on a folder."""
    run.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder])
    try:
        yield
    finally:
        run.run(["umount", "--lazy", folder])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which root alone may do")
def test_a_full_disk_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU stops the guest at the write that fails. With more space, it continues."""
    home = tmp_path / "home"
    home.mkdir()
    with small_disk(home, "3m"), bootsector.running(tmp_path, monkeypatch, bootsector.WRITE) as machine:
        with contextlib.suppress(OSError), (home / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        qemu = Qemu(machine)
        until("the failed write", lambda: process.status(machine) == driver.IO_ERROR)
        assert State.PAUSED is observe.state(machine)
        assert "the disk of this host may be full" in qemu.stopped_by()
        (home / "filler").unlink()
        qemu.unpause()
        until("the guest to continue", lambda: process.status(machine) == "running")
        assert "" == qemu.stopped_by()


def test_an_error_of_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the probe passed and a guest fails, the next start uses emulation. The state of QEMU is feigned."""
    monkeypatch.setattr("kimbox.drivers.accelerator.probe", lambda: KVM_WORKS)
    with bootsector.running(tmp_path, monkeypatch, bootsector.IDLE) as machine:
        makemachine.tell(machine, makemachine.event("ready"))
        assert KVM_WORKS == find()
        monkeypatch.setattr(process, "status", lambda _: driver.INTERNAL_ERROR)
        assert State.UNRESPONSIVE is observe.state(machine)
        assert "the next start uses emulation" in Qemu(machine).stopped_by()
        assert "tcg" == find().name
