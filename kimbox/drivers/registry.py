"""Finds drivers: by name, or of a machine. Loads the modules of a driver only when it is asked for.

To add a driver: a folder in kimbox/drivers with a class that has what base.py's `Driver` and `DriverType` have, and a
line in DRIVERS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from kimbox.drivers.base import Driver, DriverType, Features
from kimbox.drivers.hostcheck import HostCheck
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.machine.folder import Machine


def _qemu() -> DriverType:
    from kimbox.drivers.qemu.driver import Qemu

    return Qemu


def _vagrant() -> DriverType:
    from kimbox.drivers.vagrant.driver import Vagrant

    return Vagrant


#: Name of a driver -> function that loads its class. The first is the default.
DRIVERS: dict[str, Callable[[], DriverType]] = {"qemu": _qemu, "vagrant": _vagrant}

#: What the option `--provider` may say.
NAMES = tuple(DRIVERS)
DEFAULT = NAMES[0]


def name_of(machine: Machine) -> str:
    """Name of the driver that runs a machine: of its record, or, where that is missing or damaged, by its folder."""
    with contextlib.suppress(KimboxError):
        name = machine.record().driver
        if name in DRIVERS:
            return name
    return "vagrant" if machine.vagrantfile.exists() else DEFAULT


def of(machine: Machine) -> Driver:
    """The driver that runs a machine."""
    return named(name_of(machine), machine)


def named(name: str, machine: Machine) -> Driver:
    """A driver by its name, for a machine. Raises UsageError if there is none of that name."""
    if name not in DRIVERS:
        raise UsageError(f"there is no provider {name[:100]}", hint=f"it is one of {', '.join(NAMES)}")
    return DRIVERS[name]()(machine)


def first_with(has: Callable[[Features], bool]) -> str:
    """Name of the first driver that has a feature."""
    return next(name for name, load in DRIVERS.items() if has(load().features))


def check_host() -> list[HostCheck]:
    """What this host has and lacks for each driver."""
    return [check for load in DRIVERS.values() for check in load().check_host()]


def need_own_disk(machine: Machine, verb: str) -> None:
    """Raises StateError where the disk of a machine belongs to its hypervisor, so that kimbox cannot work on it."""
    _need(machine, lambda features: features.own_disk, verb, "has its disk", _new_box_hint(verb))


def need_sealing(machine: Machine, verb: str) -> None:
    """Raises StateError where the driver of a machine cannot run a sealed box."""
    _need(machine, lambda features: features.sealing, verb, "has its disk", _new_box_hint(verb))


def need_suspend(machine: Machine) -> None:
    """Raises StateError where the driver of a machine cannot save its memory and end it."""
    hint = f"`kimbox halt {machine.name}` shuts it down"
    _need(machine, lambda features: features.suspend, "suspend", "cannot save its memory", hint)


def need_memory_snapshots(machine: Machine) -> None:
    """Raises StateError where a snapshot of a running machine would lack its memory."""
    hint = f"`kimbox halt {machine.name}` first"
    _need(machine, lambda features: features.memory_snapshots, "keep", "cannot save its memory", hint)


def _new_box_hint(verb: str) -> str:
    return f"`kimbox up` without --provider, of a box made anew, has one that kimbox can {verb}"


def _need(machine: Machine, has: Callable[[Features], bool], verb: str, obstacle: str, hint: str) -> None:
    """Raises StateError where the driver of a machine lacks a feature. `obstacle` follows the name of the driver."""
    driver = of(machine)
    if not has(driver.features):
        raise StateError(f"cannot {verb} {machine.name}: {driver.name} {obstacle}", hint=hint)
