"""The template of a box: its key, and a lease on it. freezing.py makes it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from kimbox.drivers import registry
from kimbox.drivers.base import AWAITED, Launch
from kimbox.errors import StateError
from kimbox.machine import secretvalues, templates
from kimbox.machine.folder import Machine
from kimbox.machine.record import PlanDigests, Purpose, Record
from kimbox.machine.templates import Template
from kimbox.project.plan import Plan
from kimbox.spec.model import BootMode, Box

#: The MAC address of every template, which its clones keep: the guest's DHCP client and QEMU's server know each other
#: by it, and each machine has a network of its own.
MAC = "52:54:00:6b:62:78"


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

    def make() -> Template:
        from kimbox.actions.clones import freezing  # loads what a clone does not need

        return freezing.make(plan, key, timeout_s, runs_jobs)

    with templates.leased(key, make) as template:
        yield template


def key_of(plan: Plan, *, runs_jobs: bool = False) -> str:
    """Returns the key of the template of a plan. The template need not exist."""
    machine = Machine(plan.box.name)
    launch = launch_of(record_of(plan, machine.name), plan.box, runs_jobs)
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


def launch_of(record: Record, box: Box, runs_jobs: bool, **more: Any) -> Launch:
    """Returns how a template, or the machine that becomes it, starts. `more`: other fields of Launch."""
    job = AWAITED if runs_jobs else None
    return Launch(record, attrs.evolve(box, forwards=()), box.cpus, box.memory_bytes, job=job, **more)
