"""Makes a machine from a plan: complete, or not at all."""

from __future__ import annotations

import uuid

from kimbox.drivers import registry
from kimbox.drivers.base import Driver, host_ports
from kimbox.files import remove_tree, write_json
from kimbox.image import obtain
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import keys, ports
from kimbox.machine.folder import Machine
from kimbox.machine.record import PlanDigests, Purpose, Record
from kimbox.project.plan import Plan

#: First three bytes of MAC addresses that QEMU uses for virtual machines.
MAC_PREFIX = "52:54:00"


def create(machine: Machine, plan: Plan, *, purpose: Purpose = Purpose.BOX, driver: str | None = None) -> None:
    """Makes the folder of a machine, with its disk; gets the image first. `driver`: None for the default.

    `prune` keeps the image until the record refers to it.
    """
    remove_tree(machine.unfinished)
    runner = registry.named(driver or registry.DEFAULT, machine)
    with obtain.leased(plan.box, plan.recipe, offline=plan.project.offline) as image:
        runner.prepare(plan.box, image)
        try:
            with log.step("making the machine"):
                machine.unfinished.mkdir(mode=0o700)
                _fill(machine, plan, purpose, image, runner)
        except BaseException:
            remove_tree(machine.unfinished)
            raise


def _fill(machine: Machine, plan: Plan, purpose: Purpose, image: Image, driver: Driver) -> None:
    """Writes key, disk and record into the folder. The record is written last, as it makes the folder a machine."""
    box, temporary = plan.box, machine.unfinished
    keys.make_pair(temporary / machine.key.name, machine.name)
    driver.create(temporary, box, image)
    if machine.folder.exists():  # an interrupted destroy left it: it has no record
        remove_tree(machine.folder)
    identity = uuid.uuid4()
    with ports.allotting():  # until the record has the ports, where other processes see them
        chosen = ports.choose(machine, host_ports(box), {})
        record = Record(
            name=machine.name,
            source=str(box.source),
            shipped=plan.project.shipped,
            spec_digest=box.digest,
            image=image.key,
            uuid=str(identity),
            mac=":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in identity.bytes[:3])]),
            ssh_port=chosen.pop(22),
            forwards=chosen,
            box=box.name,
            purpose=purpose,
            driver=driver.name,
            plan=PlanDigests(box.digest, plan.lock.digest, plan.digest),
        )
        write_json(temporary / machine.record_file.name, record.as_json())
        temporary.rename(machine.folder)
