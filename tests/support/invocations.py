"""Invocations of QEMU for unit tests: of a machine in a plain folder, and in one with special characters."""

from __future__ import annotations

import itertools
from pathlib import Path

import makemachine
import pytest

from kimbox.drivers.accelerator import KVM_WORKS, Accelerator
from kimbox.drivers.qemu import disk
from kimbox.drivers.qemu.command import Invocation
from kimbox.machine.folder import Machine

TCG = Accelerator("tcg", "max", "there is no KVM")


@pytest.fixture(params=["plain", "a folder, with commas,,and = signs"])
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / request.param))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / request.param / "run"))
    return makemachine.make_machine()


def invoked(machine: Machine, accelerator: Accelerator = KVM_WORKS, *, resume: bool = False) -> Invocation:
    return Invocation(
        machine, machine.record(), 2, 1 << 30, accelerator, saved_state=disk.SUSPENDED_TAG if resume else None
    )


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def options(value: str) -> dict[str, str]:
    """Reads key=value,key=value as QEMU does (util/keyval.c): a comma in a value is doubled."""
    words = [word.replace("\0", ",") for word in value.replace(",,", "\0").split(",")]
    return {key if found else "": value if found else key for key, found, value in (w.partition("=") for w in words)}
