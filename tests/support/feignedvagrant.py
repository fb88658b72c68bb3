"""A host on which the programs `vagrant` and `virsh` are scripts of the test, and a machine that Vagrant runs."""

from __future__ import annotations

from pathlib import Path

import makemachine
import pytest

from kimbox.drivers import accelerator
from kimbox.drivers.accelerator import Accelerator
from kimbox.machine.folder import Machine

STATUS = (
    "1795552074,tiny,state,{state}\n1795552074,tiny,state-human-short,{state}\n1795552074,,ui,info,Current states\n"
)


class Host:
    """A PATH on which `vagrant` and `virsh` are scripts of the test. Every call of them is recorded."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls_file = folder / "calls"
        self.fake("vagrant", "exit 0")
        self.fake("virsh", "exit 0")

    def fake(self, name: str, script: str) -> None:
        """Replaces a program with a script."""
        program = self.bin / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.calls_file}"\n{script}\n')
        program.chmod(0o755)

    def says(self, text: str, *, code: int = 0, on_stderr: str = "") -> None:
        """Sets the output and the exit code of every later call of vagrant."""
        (self.bin / "out").write_text(text)
        (self.bin / "err").write_text(on_stderr)
        self.fake("vagrant", f'cat "{self.bin}/out"; cat "{self.bin}/err" >&2; exit {code}')

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    host = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{host.bin}:/usr/bin:/bin")
    monkeypatch.setattr(accelerator, "find", lambda: Accelerator("tcg", "max", "/dev/kvm is missing"))
    return host


@pytest.fixture
def machine(host: Host) -> Machine:
    """A machine that Vagrant has created."""
    machine = makemachine.make_machine(driver="vagrant")
    machine.vagrantfile.touch()
    mark = machine.folder / ".vagrant/machines/tiny/libvirt/id"
    mark.parent.mkdir(parents=True)
    mark.touch()
    return machine
