"""The registry of drivers: the protocol of each driver, the search for one, and the features that verbs require."""

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
from refused import refused

from kimbox.actions import doctor, shrink, snapshot, stop
from kimbox.actions.observe import state
from kimbox.drivers import accelerator, registry
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
    """The methods and attributes of a protocol, by name."""
    return {name: value for name, value in vars(protocol).items() if not name.startswith("_")}


@pytest.mark.parametrize("kind", [Qemu, Vagrant, FakeDrivers(Script())], ids=["qemu", "vagrant", "double"])
def test_each_driver_implements_the_protocol(kind: DriverType, machine: Machine) -> None:
    """Each method has the same parameters. This holds for the double, too, or its tests would prove nothing."""
    for protocol, implementation in ((Driver, kind(machine)), (DriverType, kind)):
        for name, declared in members(protocol).items():
            member = getattr(implementation, name)
            if isinstance(declared, property):
                continue
            _, *expected = inspect.signature(declared).parameters.values()  # the first is self
            parameters = inspect.signature(member).parameters.values()
            assert [(p.name, p.kind) for p in expected] == [(p.name, p.kind) for p in parameters], name


def test_names_and_classes_agree(machine: Machine) -> None:
    """A driver is found by its own name. The first driver is the default."""
    assert ("qemu", "vagrant", "openstack") == registry.NAMES
    assert registry.NAMES == tuple(registry.named(name, machine).name for name in registry.NAMES)
    assert registry.DEFAULT == registry.of(machine).name


def test_a_driver_is_found_by_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one that has the feature."""
    assert "qemu" == registry.first_with(lambda features: features.own_disk)
    fakedriver.install(monkeypatch, features=attrs.evolve(ALL_FEATURES, suspend=False))
    assert "vagrant" == registry.first_with(lambda features: features.suspend)


@pytest.mark.parametrize(
    ("feature", "verb", "obstacle", "act"),
    [
        ("own_disk", "shrink", "has no disk file that kimbox may change", lambda m: shrink.shrink(m, None)),
        ("suspend", "suspend", "cannot save its memory", stop.suspend),
        ("memory_snapshots", "snapshot", "cannot save its memory", lambda m: snapshot.save(m, "one")),
    ],
)
def test_a_verb_is_refused_if_the_driver_lacks_the_feature(
    machine: Machine,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    feature: str,
    verb: str,
    obstacle: str,
    act: Callable[[Machine], object],
) -> None:
    """The machine is not changed, and runs on."""
    script.boot.append(makemachine.event("ready", manifest="a" * 64))
    drivers = fakedriver.install(monkeypatch, script, attrs.evolve(ALL_FEATURES, **{feature: False}))
    registry.of(machine).start(Launch(machine.record(), None, 1, 1 << 30))
    machine.write_record(attrs.evolve(machine.record(), ended=None))
    script.did.clear()
    with refused(StateError, "unsupported-by-driver", verb=verb, name="tiny", driver="qemu") as caught:
        act(machine)
    assert f"cannot {verb} tiny: the driver qemu {obstacle}" == caught.value.message
    assert "`kimbox " in str(caught.value.hint)
    assert ([], State.READY) == (script.did, state(machine))
    drivers.made["tiny"].end_process()


def test_a_halted_machine_is_saved_without_memory(
    machine: Machine, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot has only a disk, which each driver can save."""
    fakedriver.install(monkeypatch, script, attrs.evolve(ALL_FEATURES, memory_snapshots=False))
    assert State.HALTED is snapshot.save(machine, "one")
    assert ["keep one"] == script.did


def test_doctor_checks_every_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each driver has its own checks of the host."""
    monkeypatch.setattr(accelerator, "probe", lambda: accelerator.KVM_WORKS)
    checks = [check.what for check in doctor.examine()]
    assert {"qemu-system-x86_64", "vagrant"} <= set(checks)
    fakedriver.install(monkeypatch)
    assert "qemu-system-x86_64" not in [check.what for check in doctor.examine()]


def test_the_record_names_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the record is not valid, or its driver is unknown, the folder decides."""
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
