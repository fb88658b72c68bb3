"""Makes the template of a box: a machine of its own is provisioned, frozen in memory, and moved to the store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from kimbox.actions.lifecycle import handover
from kimbox.actions.lifecycle.readiness import bring_to_ready
from kimbox.drivers import registry
from kimbox.drivers.base import AWAITED, Launch
from kimbox.errors import StateError
from kimbox.files import need_space
from kimbox.guest.events import Event
from kimbox.image import obtain
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import foreign, keys, secretvalues, templates
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import PlanDigests, Purpose, Record
from kimbox.machine.templates import Template
from kimbox.project.plan import Plan
from kimbox.spec.model import BootMode, Box

#: The MAC address of every template, which its clones keep: the guest's DHCP client and QEMU's server know each other
#: by it, and each machine has a network of its own.
MAC = "52:54:00:6b:62:78"

#: Names of the events that describe a clone as well as the template.
KEPT_EVENTS = ("booting", "box", "follow", "fallback")


@contextmanager
def leased(plan: Plan, *, timeout_s: float, runs_jobs: bool = False) -> Iterator[Template]:
    """The template of a plan. It is made first if necessary, and stays in the store while the block runs.

    `timeout_s`: timeout of the boot. `runs_jobs`: the template is one whose clones run jobs. Raises StateError if the
    box can have no template, the errors of `up` while it is made, and those of `templates.make`.
    """
    if plan.box.boot is BootMode.MAINTAIN:
        raise StateError(
            f"{plan.box.name} boots its real root, where nothing is provisioned: it has no template",
            code="maintain-mode",
            hint="use `boot: resnap` or `boot: keep` in the spec",
            fields={"name": plan.box.name},
        )
    if secretvalues.names(plan.box):
        raise StateError(
            f"{plan.box.name} has secret variables in `env`, and a template would store them with its memory",
            code="box-has-secrets",
            hint="use a box without them; `kimbox job run --cold DIR` boots a machine for the job",
            fields={"name": plan.box.name, "verb": "make a template of"},
        )
    key = key_of(plan, runs_jobs=runs_jobs)
    with templates.leased(key, lambda: _make(plan, key, timeout_s, runs_jobs)) as template:
        yield template


def key_of(plan: Plan, *, runs_jobs: bool = False) -> str:
    """Returns the key of the template of a plan. The template need not exist."""
    machine = Machine(plan.box.name)
    launch = _launch(record_of(plan, machine.name), plan.box, runs_jobs)
    facts = registry.with_templates(machine).template_facts(launch)
    if scratch := plan.box.scratch:  # the guest has mounted it, and knows its size
        facts.append(f"scratch {scratch.size_bytes} {scratch.mount}")
    return templates.key_of(image=plan.image_key, manifest=plan.digest, facts=facts)


def record_of(plan: Plan, name: str) -> Record:
    """Returns the record of the machine that becomes a template. A saved memory depends on nothing else of it."""
    box = plan.box
    return Record(
        name=name,
        source=str(box.source),
        shipped=plan.project.shipped,
        spec_digest=box.digest,
        image=plan.image_key,
        uuid=str(uuid.UUID(int=0)),
        mac=MAC,
        ssh_port=0,
        forwards={},
        cpus=box.cpus,
        memory_bytes=box.memory_bytes,
        scratch=box.scratch,
        delivery_disk=True,
        box=box.name,
        purpose=Purpose.CLONE,
        plan=PlanDigests(box.digest, plan.lock.digest, plan.digest),
        woken=True,
    )


def _launch(record: Record, box: Box, runs_jobs: bool, **more: Any) -> Launch:
    job = AWAITED if runs_jobs else None
    return Launch(record, attrs.evolve(box, forwards=()), box.cpus, box.memory_bytes, job=job, **more)


def _make(plan: Plan, key: str, timeout_s: float, runs_jobs: bool) -> Template:
    """Makes the template of a plan."""
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
        driver.create(machine.folder, box, image)
        if foreign.instance(box, machine.disk):
            foreign.refuse(box.name, "make a template of")
        record = attrs.evolve(record_of(plan, machine.name), uuid=str(uuid.uuid4()), driver=driver.name)
        # The record of a machine has a port: it is free, and the machine gets its own when it starts.
        machine.write_record(attrs.evolve(record, ssh_port=1))
        driver.choose_boot(box.boot, Choice())
        delivery = handover.prepare(machine, plan, Choice())
        record = driver.start(_launch(record, box, runs_jobs, delivery=delivery, freezing=True))
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
