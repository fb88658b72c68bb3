"""kimbox clone: starts machines from the template of a box. Each gets an identity of its own before it runs."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs

from kimbox import run
from kimbox.actions.clones import template as making
from kimbox.drivers import registry
from kimbox.drivers.base import Driver, JobStart, Launch, TemplateDriver
from kimbox.errors import GuestError, StateError
from kimbox.files import erase, read_end, remove_tree, write_atomic
from kimbox.guest.events import Tail
from kimbox.guest.identity import Identity
from kimbox.log import log
from kimbox.machine import forwarding, keys
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Purpose, Record
from kimbox.machine.templates import Template
from kimbox.project.plan import Plan, make_plan
from kimbox.project.project import Project
from kimbox.spec.model import Box

#: Timeout from the start of QEMU until the clone has its identity, in seconds. It takes less than one on an idle host.
WAKE_TIMEOUT_S = 60.0

#: Interval between two reads of the events of a clone, in seconds.
POLL_INTERVAL_S = 0.005


@attrs.frozen
class JobOfClone:
    """A job that a clone is to run. `write_disk` writes `Machine.job_disk` when the folder of the machine is there."""

    started: JobStart
    write_disk: Callable[[], None]


@attrs.frozen
class Clone:
    """A clone that has started."""

    machine: Machine
    #: Key of its template.
    template: str
    #: Time from the request until the guest had its identity, in seconds.
    duration_s: float


def own_forwards(box: Box) -> Box:
    """Returns the box with ports of the host that kimbox chooses: its clones cannot all have those of the spec."""
    return attrs.evolve(box, forwards=tuple(attrs.evolve(forward, host=None) for forward in box.forwards))


def clone(project: Project, names: Sequence[str], *, timeout_s: float, at_a_time: int = 1) -> list[Clone]:
    """Starts clones of a box, and before that makes its template if that is missing.

    `timeout_s`: timeout of the boot of the template. `at_a_time`: number of clones that start at the same time. If one
    fails, no other is started, and the clones that run already stay. Raises StateError if the box is sealed
    (`box-sealed`) or a name is taken (`name-taken`), the errors of `template.leased`, and GuestError (`clone-failed`,
    `template-unusable`).
    """
    _refuse_sealed(project.name)
    for name in names:
        _refuse_taken(Machine(name))
    plan = make_plan(project)
    with making.leased(plan, timeout_s=timeout_s) as template:
        if len(names) == 1:
            return [start(Machine(names[0]), plan, template)]
        with ThreadPoolExecutor(at_a_time) as pool:
            begin = log.attach(lambda name: start(Machine(name), plan, template))
            futures = [pool.submit(begin, name) for name in names]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _refuse_sealed(box: str) -> None:
    """Raises StateError if the box is sealed: the memory of a sealed box has its credentials in it."""
    machine = machine_of(box)
    if machine.exists and (sealed := machine.record().sealed):
        raise StateError(
            f"cannot clone {box}: it is sealed as {sealed.role} of {sealed.site}, and a clone would not be",
            code="box-sealed",
            hint=f"`kimbox secure --unseal {box}` opens it and removes its credentials",
            fields={"name": box, "verb": "clone", "role": sealed.role, "site": sealed.site},
        )


def _refuse_taken(machine: Machine) -> None:
    """Raises StateError (`name-taken`) if a machine has the name."""
    if machine.exists:
        raise StateError(
            f"cannot clone a box as {machine.name}: a machine has that name already",
            code="name-taken",
            hint=f"use another name, or remove the machine with `kimbox destroy {machine.name}`",
            fields={"name": machine.name, "owner": machine.record().source},
        )


def start(machine: Machine, plan: Plan, template: Template) -> Clone:
    """Starts a clone of a template under the lock of the machine, as `continue_template` does."""
    began_s = time.monotonic()
    with machine.locked(), log.step(f"starting {machine.name}"):
        _refuse_taken(machine)
        continue_template(machine, plan, template)
        forwarding.ensure(machine, machine.record())
    return Clone(machine, template.key, time.monotonic() - began_s)


def continue_template(
    machine: Machine,
    plan: Plan,
    template: Template,
    purpose: Purpose = Purpose.CLONE,
    *,
    job: JobOfClone | None = None,
) -> None:
    """Starts a new machine from a template, which must stay in the store until this returns.

    The caller holds the lock of the machine. `job`: what it runs; then the template is one for jobs.

    The record is written last: a folder without one is no machine, and `prune` and the next `clone` of that name end
    its process and remove it. The same is done here if the clone does not get its identity.
    """
    driver = registry.with_templates(machine)
    if machine.folder.exists():
        driver.destroy()
    remove_tree(machine.unfinished)
    try:
        machine.folder.mkdir(mode=0o700)
        if job:
            job.write_disk()
        record = _wake(machine, driver, plan, template, purpose, job)
        plan.delivered.write(machine.locks)
        machine.write_record(record)
    except BaseException:
        driver.destroy()
        raise


def _wake(
    machine: Machine, driver: TemplateDriver, plan: Plan, template: Template, purpose: Purpose, job: JobOfClone | None
) -> Record:
    """Starts the process of a clone and waits until it has its identity. Returns the record."""
    box = own_forwards(plan.box) if purpose is Purpose.CLONE else plan.box
    identity = _identity(machine, job.started.credential() if job else "")
    record = _record(machine, plan, template, identity)
    forwards_all = plan.box.auto_forwards and job is None
    record = attrs.evolve(record, driver=driver.name, purpose=purpose, auto_forwards=forwards_all, ended=None)
    _write_events(machine, template, identity)
    launch = Launch(record, box, template.cpus, template.memory_bytes, job=job.started if job else None)
    return driver.wake(launch, template.folder, identity.line, lambda: _wait_until_awake(machine, driver))


def _identity(machine: Machine, job: str) -> Identity:
    """Makes the identity of a clone and the key pair of its user, and pins its host key. `job` as in Identity.

    Leaves no copy of the private host key.
    """
    host_key = machine.folder / "host_key"
    with ThreadPoolExecutor(1) as pool:  # of the two pairs, one for each processor
        user_key = pool.submit(keys.make_pair, machine.key, machine.name)
        keys.make_pair(host_key, machine.name)
        user_key.result()
    public = host_key.with_suffix(".pub").read_text()  # with its line break: at each boot a script reads it as a line
    identity = Identity(
        name=machine.name,
        uuid=str(uuid.uuid4()),
        host_key=host_key.read_text(),
        host_public=public,
        authorized_key=machine.key.with_suffix(".pub").read_text().strip(),
        job=job,
    )
    keys.pin_host_key(machine, public.strip())
    erase(host_key)
    host_key.with_suffix(".pub").unlink()
    return identity


def _record(machine: Machine, plan: Plan, template: Template, identity: Identity) -> Record:
    """Returns the record of a clone: that of the template's machine with what is the clone's own."""
    return attrs.evolve(
        making.record_of(plan, machine.name),
        image=template.image,
        uuid=identity.uuid,
        cpus=template.cpus,
        memory_bytes=template.memory_bytes,
        scratch=template.scratch,
        template=template.key,
        settings=() if machine.name != plan.box.name else plan.box.settings,
    )


def _write_events(machine: Machine, template: Template, identity: Identity) -> None:
    """Writes the events that describe the template, with the boot of the clone. The guest adds its own ones."""
    lines = [json.dumps(event | {"boot": identity.boot_id}) + "\n" for event in template.events]
    write_atomic(machine.events_file, "".join(lines))


def _wait_until_awake(machine: Machine, driver: Driver) -> None:
    """Waits until the guest has its identity, and its processes run.

    Raises GuestError (`clone-failed`) if a step fails, if QEMU ends, or after WAKE_TIMEOUT_S. The field `step` is the
    step that failed, or empty.
    """
    deadline = time.monotonic() + WAKE_TIMEOUT_S
    tail = Tail(machine.events_file)
    while True:
        for event in tail.read():
            if event.name == "awake":
                return
            if event.name == "failed":
                step, reason = event.text("name")[:100], event.text("reason")[:500]
                raise _failed(machine, f"the step {step} of its identity failed: {reason}", step)
        if not driver.listen():
            output = run.tail(read_end(machine.qemu_log, 4096).decode("utf-8", "replace"))
            raise _failed(machine, f"its process ended before it had its identity\n{output}".rstrip())
        if time.monotonic() > deadline:
            console = run.tail(read_end(machine.serial_log, 4096).decode("utf-8", "replace"))
            why = f"it had no identity after {WAKE_TIMEOUT_S:.0f} s, the limit; the end of its console:\n{console}"
            raise _failed(machine, why.rstrip())
        time.sleep(POLL_INTERVAL_S)


def _failed(machine: Machine, why: str, step: str = "") -> GuestError:
    return GuestError(
        f"the clone {machine.name} did not start: {why}",
        code="clone-failed",
        hint="kimbox has ended and removed it: run the same command again",
        fields={"name": machine.name, "step": step},
    )
