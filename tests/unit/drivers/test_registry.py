"""The registry of drivers: what each driver has, how one is found, and which verbs need which feature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import fakedriver
import makemachine
import pytest
from fakedriver import ALL_FEATURES, FakeDrivers, Script

from kimbox.actions import doctor, shrink, snapshot, stop
from kimbox.actions.observe import state
from kimbox.drivers import registry
from kimbox.drivers.base import Driver, DriverType, Launch
from kimbox.drivers.qemu.driver import Qemu
from kimbox.drivers.vagrant.driver import Vagrant
from kimbox.errors import StateError
from kimbox.machine.folder import Machine
from kimbox.machine.state import State


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that is halted."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return makemachine.make_machine()


def members(protocol: type) -> dict[str, Any]:
    """Methods and attributes that a protocol asks for."""
    return {name: value for name, value in vars(protocol).items() if not name.startswith("_")}


@pytest.mark.parametrize("kind", [Qemu, Vagrant, FakeDrivers(Script())], ids=["qemu", "vagrant", "double"])
def test_each_driver_has_what_the_protocol_asks_for(kind: DriverType, machine: Machine) -> None:
    """Each method with the same parameters. The double, too, as the tests that use it prove nothing otherwise."""
    for protocol, has in ((Driver, kind(machine)), (DriverType, kind)):
        for name, wanted in members(protocol).items():
            there = getattr(has, name)
            if isinstance(wanted, property):
                continue
            _, *expected = inspect.signature(wanted).parameters.values()  # the first is self
            found = inspect.signature(there).parameters.values()
            assert [(p.name, p.kind) for p in expected] == [(p.name, p.kind) for p in found], name


def test_names_and_classes_agree(machine: Machine) -> None:
    """What a driver is called is what it is found by; the first is the default."""
    assert ("qemu", "vagrant") == registry.NAMES
    assert registry.NAMES == tuple(registry.named(name, machine).name for name in registry.NAMES)
    assert registry.DEFAULT == registry.of(machine).name


def test_a_driver_is_found_by_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one that has the feature."""
    assert "qemu" == registry.first_with(lambda features: features.own_disk)
    fakedriver.install(monkeypatch, features=attrs.evolve(ALL_FEATURES, suspend=False))
    assert "vagrant" == registry.first_with(lambda features: features.suspend)


@pytest.mark.parametrize(
    ("feature", "message", "act"),
    [
        ("own_disk", "cannot shrink tiny: qemu has its disk", lambda machine: shrink.shrink(machine, None)),
        ("suspend", "cannot suspend tiny: qemu cannot save its memory", stop.suspend),
        (
            "memory_snapshots",
            "cannot keep tiny: qemu cannot save its memory",
            lambda machine: snapshot.save(machine, "one"),
        ),
    ],
)
def test_a_verb_is_refused_where_the_driver_lacks_the_feature(
    machine: Machine,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    feature: str,
    message: str,
    act: Callable[[Machine], object],
) -> None:
    """Nothing is done to the machine, which runs on."""
    script.boot.append(makemachine.event("ready", manifest="a" * 64))
    drivers = fakedriver.install(monkeypatch, script, attrs.evolve(ALL_FEATURES, **{feature: False}))
    registry.of(machine).start(Launch(machine.record(), None, 1, 1 << 30))
    machine.write_record(attrs.evolve(machine.record(), ended=None))
    script.did.clear()
    with pytest.raises(StateError) as refused:
        act(machine)
    assert message == refused.value.message
    assert "`kimbox " in str(refused.value.hint)
    assert ([], State.READY) == (script.did, state(machine))
    drivers.made["tiny"].end_process()


def test_a_halted_machine_is_saved_without_memory(
    machine: Machine, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is a disk, which every driver can save."""
    fakedriver.install(monkeypatch, script, attrs.evolve(ALL_FEATURES, memory_snapshots=False))
    assert State.HALTED is snapshot.save(machine, "one")
    assert ["keep one"] == script.did


def test_doctor_asks_every_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver needs is the driver's to say."""
    checks = [check.what for check in doctor.examine()]
    assert {"qemu-system-x86_64", "vagrant"} <= set(checks)
    fakedriver.install(monkeypatch)
    assert "qemu-system-x86_64" not in [check.what for check in doctor.examine()]


def test_the_record_names_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a machine without a readable record, or with a driver that is not known, the folder decides."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    machine = makemachine.make_machine()
    assert "qemu" == registry.name_of(machine)
    machine.vagrantfile.touch()
    assert "qemu" == registry.name_of(machine)
    machine.write_record(attrs.evolve(machine.record(), driver="vagrant"))
    machine.vagrantfile.unlink()
    assert "vagrant" == registry.name_of(machine)
    machine.write_record(attrs.evolve(machine.record(), driver="another"))
    assert "qemu" == registry.name_of(machine)
    machine.record_file.write_text("{")
    machine.vagrantfile.touch()
    assert "vagrant" == registry.name_of(machine)
