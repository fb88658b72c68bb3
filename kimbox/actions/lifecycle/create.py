"""Creates a machine from a plan. After a failure no part of it is left."""

from __future__ import annotations

import uuid
from pathlib import Path

from kimbox.actions.lifecycle import disksize
from kimbox.drivers import registry
from kimbox.drivers.base import Driver, host_ports
from kimbox.errors import StateError
from kimbox.files import remove_tree, write_json
from kimbox.image import obtain
from kimbox.image.disk import nbd
from kimbox.image.saves import private
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import foreign, keys, ports
from kimbox.machine.folder import Machine
from kimbox.machine.record import PlanDigests, Purpose, Record
from kimbox.project.plan import Plan
from kimbox.spec.model import Box, SavedImage

#: First three bytes of MAC addresses that QEMU uses for virtual machines.
MAC_PREFIX = "52:54:00"


def create(machine: Machine, plan: Plan, *, purpose: Purpose = Purpose.BOX, driver: str | None = None) -> None:
    """Creates the folder of a machine with its disk, and before it the image if that is missing.

    `driver`: name of the driver; None for the default. A lease keeps the image from `prune` until the record refers to
    it. Raises ImageError if there is no image, and the errors of the driver.
    """
    disksize.check_new(plan.box)
    remove_tree(machine.unfinished)
    chosen_driver = registry.named(driver or registry.DEFAULT, machine)
    with obtain.leased(plan.box, plan.recipe, offline=plan.project.offline) as image:
        chosen_driver.prepare(plan.box, image)
        try:
            with log.step("creating the machine"):
                machine.unfinished.mkdir(mode=0o700)
                _fill(machine, plan, purpose, image, chosen_driver)
        except BaseException:
            remove_tree(machine.unfinished)
            raise


def make_disks(driver: Driver, folder: Path, box: Box, image: Image, disk_name: str, machine_id: str) -> None:
    """Creates the disks of a machine in its folder, as `Driver.create` does.

    A disk that is made of a saved box gets its own machine-id (32 hex digits) and seeds: the image has none. Without an
    id, systemd-networkd gives up the network card. Raises the errors of the driver, and ImageError.
    """
    driver.create(folder, box, image)
    if isinstance(box.image, SavedImage):
        with nbd.opened(folder / disk_name, "qcow2", writable=True) as target:
            private.renew(target.read, target.write, target.size_bytes, machine_id)
            target.flush()


def refuse_existing(machine: Machine) -> None:
    """Raises StateError (`name-taken`) if a machine has that name already."""
    if machine.exists:
        name = machine.name
        raise StateError(
            f"cannot create {name}: a machine has that name already",
            code="name-taken",
            hint=f"`kimbox start {name}` starts it. Use another name, or remove it with `kimbox destroy {name}`",
            fields={"name": name, "owner": machine.record().source},
        )


def _fill(machine: Machine, plan: Plan, purpose: Purpose, image: Image, driver: Driver) -> None:
    """Writes key, disk and record into the folder. The record is last, because only a folder with one is a machine."""
    box, folder = plan.box, machine.unfinished
    keys.make_pair(folder / machine.key.name, machine.name)
    identity = uuid.uuid4()
    make_disks(driver, folder, box, image, machine.disk.name, identity.hex)
    seed = foreign.instance(box, folder / machine.disk.name) if driver.features.seed else None
    if seed:
        foreign.check_spec(box, {box.boot})
    if seed and purpose in (Purpose.JOB, Purpose.SWEEP):
        foreign.refuse(box.name, "run a job in")
    if machine.folder.exists():  # left by an interrupted destroy, without a record
        remove_tree(machine.folder)
    with ports.allotting():  # until the ports are in the record, where other processes see them
        allotted = ports.choose(machine, host_ports(box), {})
        record = Record(
            name=machine.name,
            source=str(box.source),
            shipped=plan.project.shipped,
            spec_digest=box.digest,
            image=image.key,
            uuid=str(identity),
            mac=":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in identity.bytes[:3])]),
            ssh_port=allotted.pop(22),
            forwards=allotted,
            box=box.name,
            purpose=purpose,
            driver=driver.name,
            plan=PlanDigests(box.digest, plan.lock.digest, plan.digest),
            settings=box.settings,
            seed=seed,
        )
        plan.delivered.write(folder / machine.locks.name)
        write_json(folder / machine.record_file.name, record.as_json())
        folder.rename(machine.folder)
