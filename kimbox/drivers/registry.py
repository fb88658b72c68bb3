"""Finds drivers by name or for a machine. The modules of a driver are loaded when the driver is used.

To add a driver, write a folder in kimbox/drivers with a class that implements `Driver` and `DriverType` of base.py, and
add a line to DRIVERS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from kimbox.drivers.base import Driver, DriverType, Features, PublishingDriver, TemplateDriver
from kimbox.drivers.hostcheck import HostCheck
from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.machine.folder import Machine
from kimbox.machine.record import CLOUD_FILE


def _qemu() -> DriverType:
    from kimbox.drivers.qemu.driver import Qemu

    return Qemu


def _vagrant() -> DriverType:
    from kimbox.drivers.vagrant.driver import Vagrant

    return Vagrant


def _openstack() -> DriverType:
    from kimbox.drivers.openstack.driver import OpenStack

    return OpenStack


#: Name of a driver -> function that loads its class. The first is the default.
DRIVERS: dict[str, Callable[[], DriverType]] = {"qemu": _qemu, "vagrant": _vagrant, "openstack": _openstack}

#: Values of the option `--provider`.
NAMES = tuple(DRIVERS)
DEFAULT = NAMES[0]


def name_of(machine: Machine) -> str:
    """Returns the name of a machine's driver: from its record, or from its folder if the record is not valid."""
    with contextlib.suppress(KimboxError, OSError):
        name = machine.record().driver
        if name in DRIVERS:
            return name
    if (machine.folder / CLOUD_FILE).exists():  # `destroy` must not forget what is in the cloud
        return "openstack"
    return "vagrant" if machine.vagrantfile.exists() else DEFAULT


def of(machine: Machine) -> Driver:
    """Returns the driver of a machine."""
    return named(name_of(machine), machine)


def named(name: str, machine: Machine) -> Driver:
    """Returns the driver of that name for a machine. Raises UsageError (`bad-value`) if it does not exist."""
    if name not in DRIVERS:
        raise UsageError(
            f"unknown provider {name[:100]}",
            code="bad-value",
            hint=f"use one of {', '.join(NAMES)}",
            fields={"provider": name[:100]},
        )
    return DRIVERS[name]()(machine)


def first_with(has: Callable[[Features], bool]) -> str:
    """Returns the name of the first driver for whose features `has` returns True."""
    return next(name for name, load in DRIVERS.items() if has(load().features))


def check_host() -> list[HostCheck]:
    """Checks what this host has for each driver."""
    return [check for load in DRIVERS.values() for check in load().check_host()]


def remains() -> dict[Path, tuple[str, str]]:
    """Unused files and folders of the drivers -> name of the driver, and a description."""
    return {path: (name, text) for name, load in DRIVERS.items() for path, text in load().remains().items()}


def remove_remains(driver: str, path: Path) -> bool:
    """Removes a path that `remains` returned, unless a process uses it now. True if it was removed."""
    return DRIVERS[driver]().remove_remains(path)


def need_own_disk(machine: Machine, verb: str) -> None:
    """Raises StateError (`unsupported-by-driver`) if the disk of a machine is not a file of kimbox."""
    _need(
        machine,
        lambda features: features.own_disk,
        verb,
        "has no disk file that kimbox may change",
        _new_box_hint(machine),
    )


def need_sealing(machine: Machine, verb: str) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine cannot run a sealed box."""
    _need(machine, lambda features: features.sealing, verb, "cannot run a sealed box", _new_box_hint(machine))


def need_jobs(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine cannot give it the disk of a job."""
    _need(machine, lambda features: features.jobs, "run a job in", "has no disk for jobs", _new_box_hint(machine))


def need_secrets(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine cannot give it secret variables."""
    obstacle = "cannot give it the secret variables of its spec (`env`)"
    _need(machine, lambda f: f.secrets or f.secrets_by_ssh, "start", obstacle, _new_box_hint(machine))


def need_mounts(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine cannot share folders of the host."""
    obstacle = "cannot share the folders of this host in its spec (`mounts`)"
    _need(machine, lambda features: features.mounts, "start", obstacle, _new_box_hint(machine))


def need_networks(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine has no networks between boxes."""
    obstacle = "cannot connect it to the networks of its spec"
    _need(machine, lambda features: features.networks, "start", obstacle, _new_box_hint(machine))


def need_auto_forwards(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine cannot forward what listens in it."""
    obstacle = "cannot forward each port on which it listens (`guest: auto`)"
    _need(machine, lambda features: features.own_process, "start", obstacle, _new_box_hint(machine))


def need_display(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine has no screen."""
    _need(machine, lambda features: features.display, "start", "gives it no screen (`display`)", _new_box_hint(machine))


def need_own_process(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if a machine is not a process of this user."""
    obstacle = "runs it in a process of its own"
    _need(machine, lambda features: features.own_process, "keep up", obstacle, _new_box_hint(machine))


def need_suspend(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if the driver of a machine cannot suspend it."""
    hint = f"`kimbox halt {machine.name}` shuts it down"
    _need(machine, lambda features: features.suspend, "suspend", "cannot save its memory", hint)


def need_memory_snapshots(machine: Machine) -> None:
    """Raises StateError (`unsupported-by-driver`) if a snapshot of a running machine would lack its memory."""
    hint = f"`kimbox halt {machine.name}` shuts it down; then its disk can be saved"
    _need(machine, lambda features: features.memory_snapshots, "snapshot", "cannot save its memory", hint)


def with_templates(machine: Machine) -> TemplateDriver:
    """Returns a driver that can make templates and clones, for a machine that is to be one."""
    driver = named(first_with(lambda features: features.templates), machine)
    assert isinstance(driver, TemplateDriver)  # noqa: S101 - the class of the feature
    return driver


def publishing(machine: Machine) -> PublishingDriver:
    """Returns the driver that publishes images, for a machine, which need not exist."""
    driver = named(first_with(lambda features: features.publishing), machine)
    assert isinstance(driver, PublishingDriver)  # noqa: S101 - the class of the feature
    return driver


def _new_box_hint(machine: Machine) -> str:
    name = machine.name
    return f"`kimbox destroy {name}`, then `kimbox up {name}` without --provider, creates a machine that allows it"


def _need(machine: Machine, has: Callable[[Features], bool], verb: str, obstacle: str, hint: str) -> None:
    """Raises StateError if the driver of a machine lacks a feature. `obstacle` follows the name of the driver."""
    driver = of(machine)
    if not has(driver.features):
        raise StateError(
            f"cannot {verb} {machine.name}: the driver {driver.name} {obstacle}",
            code="unsupported-by-driver",
            hint=hint,
            fields={"verb": verb, "name": machine.name, "driver": driver.name},
        )
