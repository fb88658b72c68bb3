"""kimbox up: brings a box to ready from any state, and does only what is missing."""

from __future__ import annotations

import attrs

from kimbox.actions.lifecycle.create import create
from kimbox.actions.lifecycle.readiness import bring_to_ready, check_root
from kimbox.actions.lifecycle.start import mend_record, start, wake
from kimbox.actions.observe import check_owner, is_open_still, state
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.drivers import registry
from kimbox.errors import StateError, UsageError
from kimbox.log import log
from kimbox.machine import bootmode
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Purpose
from kimbox.machine.state import State, last_manifest_event, sent_manifest
from kimbox.project.plan import Plan, make_plan
from kimbox.project.project import Project
from kimbox.spec.model import SETUP, Box
from kimbox.spec.urls import why_not_followed


@attrs.frozen
class UpRequest:
    """What `up` is to do."""

    project: Project
    #: False: the box is booted, and nothing is sent to it.
    provision: bool = True
    timeout_s: float = BOOT_TIMEOUT_S
    boot: Choice = attrs.field(factory=Choice)
    #: Name of the driver that runs the machine; None: the one that runs it already, and the default for a new machine.
    driver: str | None = None
    #: Which machine of the box.
    purpose: Purpose = Purpose.BOX


def following(box: Box) -> Box:
    """A box that follows the branch of its setup repository, as if its spec said so. Raises UsageError if it cannot."""
    setup = box.repository(SETUP)
    if setup is None:
        raise UsageError(f"the box {box.name} has no setup repository to follow")
    if why := why_not_followed(SETUP, setup.url, setup.ref, is_verified=bool(setup.keys)):
        raise UsageError(f"{box.name} cannot follow {setup.url[:200]}: {why}")
    others = (attrs.evolve(r, follow=True) if r.name == SETUP else r for r in box.repositories)
    return attrs.evolve(box, repositories=tuple(others))


def up(request: UpRequest) -> State:
    """Brings a box to ready from any state, doing only what is missing. Returns the state before.

    A box in maintain mode is ready when it has booted: it is neither sent a manifest nor provisioned. Raises
    ImageError, GuestError, StateError (another spec owns the name) or SpecError (the lock).
    """
    project, box = request.project, request.project.box
    machine = machine_of(project.name, request.purpose)
    with machine.locked():
        check_owner(machine, project, request.purpose)
        _check_driver(machine, request.driver)
        plan = make_plan(project, made_from=machine.record().image if machine.exists else None)
        before = state(machine)
        bootmode.check(machine, before, request.boot)
        if before is State.ABSENT:
            create(machine, plan, purpose=request.purpose, driver=request.driver)
        else:
            mend_record(machine, before)
            _warn_of_changes(machine, plan, before)
        if is_open_still(machine, before):
            hint = f"`kimbox secure {machine.name}` restarts it"
            raise StateError(f"{machine.name} has taken its role, and is open until it restarts", hint=hint)
        last = last_manifest_event(machine.boot_events())
        is_part = last is not None and "part" in last.fields
        is_done = last is not None and last.text("manifest") == plan.digest == sent_manifest(last)
        if before is State.SEALED or (
            before is State.READY and ((is_done and not is_part) or bootmode.is_maintained(machine))
        ):
            return before
        if before in (State.PAUSED, State.SUSPENDED):
            wake(machine, before, box)
        elif not before.running:
            registry.of(machine).choose_boot(box.boot, request.boot)
            start(machine, box)
        else:
            check_root(machine)
        again = is_part or (before is State.FAILED and last is not None and "wanted" not in last.fields)
        bring_to_ready(machine, plan, timeout_s=request.timeout_s, again=again, send=request.provision)
        return before


def _check_driver(machine: Machine, name: str | None) -> None:
    """Raises StateError if another driver than the requested one runs the machine."""
    if name is None:
        return
    registry.named(name, machine)
    now = registry.of(machine).name
    if machine.exists and name != now:
        hint = f"`kimbox destroy {machine.name}` and `kimbox up --provider {name}` make it anew"
        raise StateError(f"{machine.name} is run by {now}, not by {name}", hint=hint)


def _warn_of_changes(machine: Machine, plan: Plan, before: State) -> None:
    """Warns of changes in the spec that reach the machine only after a restart, or only when it is made anew."""
    record, box = machine.record(), plan.box
    if before.running and record.scratch != box.scratch:
        log.warn(f"the spec of {box.name} asks for another scratch space: `kimbox reload {box.name}` makes it")
    if record.image != plan.lock.image:
        log.warn(
            f"the spec of {box.name} now describes another image than the one this box was made from; "
            f"`kimbox destroy {box.name}` and `kimbox up` make it anew"
        )
