"""How a node of a pool starts the box for a job: the start of a machine that is not on this host."""

from __future__ import annotations

import uuid
from pathlib import Path

from kimbox.actions.jobs.request import RunRequest
from kimbox.actions.jobs.run import MAX_BOX_CHARACTERS
from kimbox.actions.lifecycle.create import MAC_PREFIX
from kimbox.drivers import registry
from kimbox.drivers.base import JobStart, Launch, PortableDriver
from kimbox.errors import KimboxError
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.jobs.order import PLACEHOLDER
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose, Record
from kimbox.project.plan import Plan

#: The place of the machine in the command line. No folder of that name exists.
PLACE = Path("/kimbox-node")


def portable_command(plan: Plan, job: RunRequest, delivery: DeliveryDisk) -> list[str]:
    """Returns the command line with which the runner boots the box. Raises KimboxError (`unsupported-by-driver`)."""
    box = plan.box
    machine = Machine(f"{box.name[:MAX_BOX_CHARACTERS]}-job", PLACE)
    driver = registry.named(registry.DEFAULT, machine)
    if not isinstance(driver, PortableDriver):
        raise KimboxError(f"the driver {driver.name} cannot start a box on another host", code="unsupported-by-driver")
    identity = uuid.uuid5(uuid.NAMESPACE_OID, plan.digest)
    record = Record(
        name=machine.name,
        source=str(box.source),
        shipped=None,
        spec_digest=box.digest,
        image=plan.image_key,
        uuid=str(identity),
        mac=":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in identity.bytes[:3])]),
        ssh_port=0,
        forwards={},
        cpus=box.cpus,
        memory_bytes=box.memory_bytes,
        scratch=box.scratch,
        delivery_disk=True,
        box=box.name,
        purpose=Purpose.JOB,
    )
    start = JobStart(PLACEHOLDER, job.timeout_s, job.network.is_open)
    launch = Launch(record, box, box.cpus, box.memory_bytes, delivery=delivery, job=start)
    return driver.portable_command(launch)
