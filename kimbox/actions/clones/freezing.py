"""Makes a template: a machine of its own is provisioned, frozen in memory, and moved to the store."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import attrs

from kimbox.actions.clones.template import launch_of, record_of
from kimbox.actions.lifecycle import handover
from kimbox.actions.lifecycle.create import make_disks
from kimbox.actions.lifecycle.readiness import bring_to_ready
from kimbox.drivers import registry
from kimbox.files import need_space
from kimbox.guest.events import Event
from kimbox.image import obtain
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import foreign, keys, templates
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.templates import Template
from kimbox.project.plan import Plan

#: Names of the events that describe a clone as well as the template.
KEPT_EVENTS = ("booting", "box", "follow", "fallback")


def make(plan: Plan, key: str, timeout_s: float, runs_jobs: bool) -> Template:
    """Makes the template of a plan. Arguments and errors as those of `template.leased`."""
    purpose = " for jobs" if runs_jobs else ""
    with (
        log.step(f"making a template of {plan.box.name}{purpose}"),
        obtain.leased(plan.box, plan.recipe, offline=plan.project.offline) as image,
    ):
        return templates.make(key, lambda work, done: _fill(plan, key, image, work, done, timeout_s, runs_jobs))


def _fill(plan: Plan, key: str, image: Image, work: Path, done: Path, timeout_s: float, runs_jobs: bool) -> Template:
    """Brings a machine in `work` to ready, and freezes it to the folder `done`."""
    box = plan.box
    machine = Machine(box.name, place=work)
    driver = registry.with_templates(machine)
    # QEMU ends with a bus error if the file system has no room for a page of the memory, and cannot report it.
    need_space(work, box.memory_bytes, "the memory of the template")
    driver.prepare(box, image)
    machine.folder.mkdir(mode=0o700)
    try:
        keys.make_pair(machine.key, machine.name)
        identity = uuid.uuid4()
        make_disks(driver, machine.folder, box, image, machine.disk.name, identity.hex)
        if foreign.instance(box, machine.disk):
            foreign.refuse(box.name, "make a template of")
        record = attrs.evolve(record_of(plan, machine.name), uuid=str(identity), driver=driver.name)
        # The record of a machine has a port: it is free, and the machine gets its own when it starts.
        machine.write_record(attrs.evolve(record, ssh_port=1))
        driver.choose_boot(box.boot, Choice())
        delivery = handover.prepare(machine, plan, Choice())
        record = driver.start(launch_of(record, box, runs_jobs, delivery=delivery, freezing=True))
        machine.write_record(attrs.evolve(record, ended=None))
        # No login may be open: every clone would have it, with the keys of its connection.
        bring_to_ready(machine, plan, timeout_s=timeout_s, must_send=False, connects=False)
        with log.step("freezing it"):
            events = tuple(_plain(event) for event in machine.boot_events() if event.name in KEPT_EVENTS)
            driver.freeze(box.cold_units, done, templates.folder(key))
    finally:
        driver.destroy()
    return Template(key, box.name, image.key, plan.digest, box.cpus, box.memory_bytes, box.scratch, events)


def _plain(event: Event) -> dict[str, Any]:
    """Returns an event as a JSON object."""
    return {"event": event.name, "boot": event.boot, "uptime_s": event.uptime_s, **event.fields}
