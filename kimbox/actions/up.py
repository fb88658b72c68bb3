"""kimbox up: brings a box to ready from any state, and does only the steps that are missing."""

from __future__ import annotations

import attrs

from kimbox.actions import install as installing
from kimbox.actions import lifetime, rebuild
from kimbox.actions.clones import template
from kimbox.actions.clones.clone import continue_template, own_forwards
from kimbox.actions.lifecycle import disksize
from kimbox.actions.lifecycle.create import create
from kimbox.actions.lifecycle.handover import prepare
from kimbox.actions.lifecycle.readiness import bring_to_ready, check_root
from kimbox.actions.lifecycle.start import repair_record, start, wake
from kimbox.actions.notices import notify
from kimbox.actions.observe import check_owner, needs_restart_to_seal, state
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.drivers import registry
from kimbox.errors import StateError, UsageError
from kimbox.log import log
from kimbox.machine import bootmode, forwarding, mounts, ports, rebuilt
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Purpose
from kimbox.machine.shape import shape_changes
from kimbox.machine.state import State, last_manifest_event, require, sent_manifest
from kimbox.project.plan import Plan, make_plan
from kimbox.project.project import Project
from kimbox.spec.model import SETUP, BootMode, Box
from kimbox.spec.occasions import Occasion
from kimbox.spec.urls import why_not_followed


@attrs.frozen
class UpRequest:
    """The arguments of `up`."""

    project: Project
    #: False: the box only boots, and no manifest is sent.
    provision: bool = True
    #: Timeout of the boot, in seconds.
    timeout_s: float = BOOT_TIMEOUT_S
    #: The boot mode of the command line, if there is one.
    boot: Choice = attrs.field(factory=Choice)
    #: Name of the driver; None: the present driver of the machine, and the default driver for a new machine.
    driver: str | None = None
    #: Purpose of the machine: it selects one of the machines of the box.
    purpose: Purpose = Purpose.BOX
    #: The plan, if `plan_restart` has made it already.
    plan: Plan | None = None
    #: Boot a new machine, also if the spec has `warm: true`.
    cold: bool = False
    #: Give a machine of another image a root from the image of the present spec.
    rebuild: bool = False
    #: Install the packages that the lock has more than the box.
    install: bool = False
    #: Name of a clone of the box, whose purpose is CLONE. None: the machine of the box for the purpose.
    clone: str | None = None

    @property
    def machine(self) -> Machine:
        """The machine, whether it exists or not."""
        return Machine(self.clone) if self.clone else machine_of(self.project.name, self.purpose)

    @property
    def box(self) -> Box:
        """The spec of the machine: that of the project, with other ports of the host if it is a clone."""
        return own_forwards(self.project.box) if self.purpose is Purpose.CLONE else self.project.box


def following(box: Box) -> Box:
    """Returns the box, changed to follow the branch of its setup repository, as with `follow: true` in its spec.

    Raises UsageError if it cannot.
    """
    setup = box.repository(SETUP)
    if setup is None:
        raise UsageError(
            f"the box {box.name} has no setup repository to follow",
            code="repository-not-found",
            fields={"box": box.name, "repository": SETUP},
        )
    if reason := why_not_followed(SETUP, setup.url, setup.ref, is_verified=bool(setup.keys)):
        raise UsageError(
            f"{box.name} cannot follow {setup.url[:200]}: {reason}",
            code="conflicting-settings",
            fields={"box": box.name, "repository": SETUP},
        )
    others = (attrs.evolve(r, follow=True) if r.name == SETUP else r for r in box.repositories)
    return attrs.evolve(box, repositories=tuple(others))


def plan_restart(request: UpRequest) -> UpRequest:
    """Returns the request with its plan, for a verb that halts a machine and then calls `up`.

    Everything that can fail without the guest fails here, while the machine still runs. Raises StateError if another
    spec owns the machine, a sealed box may not boot keep, or a port of the host is in use; UsageError if --from-scratch
    has no effect; and the errors of `make_plan`.
    """
    machine, project = request.machine, request.project
    with machine.locked():
        check_owner(machine, project, request.purpose)
        rebuilt.finish(machine)
        record = machine.record()
        _check_sealed_mode(machine, request)
        _check_from_scratch(machine, request)
        if request.purpose is Purpose.BOX:
            mounts.check_folders(machine.name, request.box.mounts)
        own = {record.ssh_port, *record.forwards.values()}
        requested = {forward.guest: forward.host for forward in request.box.forwards if forward.host not in own}
        with ports.allotting():
            ports.choose(machine, {guest: host for guest, host in requested.items() if host is not None}, {})
        return attrs.evolve(request, plan=make_plan(project, made_from=record.image))


def _check_from_scratch(machine: Machine, request: UpRequest) -> None:
    """Raises UsageError for --from-scratch with another mode than resnap, StateError if the driver cannot do it."""
    if not request.boot.from_scratch:
        return
    mode = request.boot.mode or request.project.box.boot
    if mode is not BootMode.RESNAP:
        raise UsageError(
            f"--from-scratch requires the boot mode resnap, and {machine.name} would boot {mode}",
            code="usage",
            hint="write --boot resnap --from-scratch",
            fields={"option": "--from-scratch"},
        )
    if not registry.of(machine).features.own_disk:
        raise StateError(
            f"the disk of {machine.name} belongs to its provider: kimbox cannot end what the box keeps there",
            code="unsupported-by-driver",
            hint=f"`kimbox exec {machine.name} -- sudo /usr/lib/kimbox/kept drop`, then `kimbox reload --boot resnap`",
            fields={"name": machine.name},
        )


def up(request: UpRequest) -> State:
    """Brings a box to ready from any state, with only the steps that are missing. Returns the state before.

    A box in maintain mode is ready when it has booted: no manifest is sent. Raises ImageError; GuestError if the guest
    fails; StateError, for example if another spec owns the name; SpecError if the lock has faults.
    """
    project, box, machine = request.project, request.box, request.machine
    if box.settings:
        log.info(f"{machine.name} differs from its spec by `--set`: {', '.join(box.settings)}")
    if request.rebuild:
        _rebuild(request)
    with machine.locked():
        check_owner(machine, project, request.purpose, is_locked=True)
        _check_driver(machine, request.driver)
        rebuilt.finish(machine)
        before = _bring_up(request)
        if request.provision and not bootmode.is_maintained(machine):
            rebuild.restore_kept(machine)
        forwarding.ensure(machine, machine.record())
        if request.install:
            installing.install(machine, make_plan(project))
    return before


def _bring_up(request: UpRequest) -> State:
    """Does the missing steps of `up` under the lock of the machine. Returns the state before."""
    project, box, machine = request.project, request.box, request.machine
    plan = request.plan or make_plan(project, made_from=machine.record().image if machine.exists else None)
    before = state(machine)
    require("up", machine.name, before)
    if request.purpose is Purpose.BOX and not before.running:
        mounts.check_folders(machine.name, box.mounts)
    bootmode.check(machine, before, request.boot)
    is_warm = before is State.ABSENT and _is_warm(request)
    if is_warm:
        with template.leased(plan, timeout_s=request.timeout_s) as found, log.step(f"starting {machine.name}"):
            continue_template(machine, plan, found, request.purpose)
    elif before is State.ABSENT:
        create(machine, plan, purpose=request.purpose, driver=request.driver)
    else:
        repair_record(machine, before)
        disksize.check(machine, machine.record(), box)
        _record_settings(machine, box)
        _warn_of_changes(machine, box, plan, before)
    lifetime.begin(machine, box, is_start=not before.running)
    if needs_restart_to_seal(machine, before):
        raise StateError(
            f"{machine.name} has taken its role, and is open until it restarts",
            code="restart-required",
            hint=f"`kimbox secure {machine.name}` restarts it",
            fields={"name": machine.name},
        )
    last = last_manifest_event(machine.boot_events())
    is_part = last is not None and "part" in last.fields
    is_done = last is not None and last.text("manifest") == plan.digest == sent_manifest(last)
    if before is State.SEALED or (
        before is State.READY and ((is_done and not is_part) or bootmode.is_maintained(machine))
    ):
        if before is State.SEALED and not is_done:
            _warn_of_manifest(machine)
        return before
    if before in (State.PAUSED, State.SUSPENDED):
        wake(machine, before, box)
    elif not before.running and not is_warm:
        _check_sealed_mode(machine, request)
        delivery = prepare(machine, plan, request.boot) if request.provision else None
        start(machine, box, boot=request.boot, delivery=delivery)
    else:
        check_root(machine)
    must_send = is_part or (before is State.FAILED and last is not None and "wanted" not in last.fields)
    bring_to_ready(machine, plan, timeout_s=request.timeout_s, must_send=must_send, may_send=request.provision)
    notify(machine, Occasion.READY, f"{machine.name} is {state(machine)}", before=str(before))
    return before


def _record_settings(machine: Machine, box: Box) -> None:
    """Writes the settings of the command line to the record, so that `reload` and later verbs use them."""
    record = machine.record()
    if record.settings != box.settings:
        machine.write_record(attrs.evolve(record, settings=box.settings))


def _rebuild(request: UpRequest) -> None:
    """Replaces the root of a machine whose image is not that of the spec. It runs before, if files of it are kept."""
    machine, project = request.machine, request.project
    if request.purpose is not Purpose.BOX:
        raise UsageError(
            f"{machine.name} is a clone, and is not rebuilt",
            code="usage",
            hint="`kimbox destroy` and `kimbox clone` make a new one",
        )
    if not rebuild.is_needed(machine, project):
        return
    if project.box.keep:
        up(attrs.evolve(request, rebuild=False, provision=False, boot=Choice(), plan=None))
    rebuild.rebuild(machine, project)


def _is_warm(request: UpRequest) -> bool:
    """Whether a new machine continues the template of the box. A boot mode or another driver requires a boot."""
    if not request.box.warm or request.cold or request.box.disk_bytes or request.purpose is not Purpose.BOX:
        return False
    driver = registry.named(request.driver or registry.DEFAULT, request.machine)
    return request.provision and request.boot.mode is None and driver.features.templates


def _check_sealed_mode(machine: Machine, request: UpRequest) -> None:
    """Raises StateError if a sealed box would boot keep, and its spec does not allow that."""
    if machine.record().sealed and not machine.unseal_mark.exists():
        bootmode.refuse_kept_root(request.project.box, request.boot)


def _check_driver(machine: Machine, name: str | None) -> None:
    """Raises StateError if another driver than the requested one runs the machine."""
    if name is None:
        return
    registry.named(name, machine)
    present = registry.of(machine).name
    if machine.exists and name != present:
        raise StateError(
            f"{machine.name} is run by {present}, not by {name}",
            code="wrong-driver",
            hint=f"`kimbox destroy {machine.name}` and `kimbox up --provider {name}` create it with {name}",
            fields={"name": machine.name, "driver": present, "requested": name},
        )


def _warn_of_manifest(machine: Machine) -> None:
    """Warns that a sealed box runs another manifest than that of the present spec and lock."""
    log.warn(
        f"{machine.name} is sealed with another manifest than that of its spec and lock: the next start brings that "
        f"one, such as `kimbox reload {machine.name}`"
    )


def _warn_of_changes(machine: Machine, box: Box, plan: Plan, before: State) -> None:
    """Warns of changes in the spec `box` that apply only after a restart, or only to a new machine."""
    record, name = machine.record(), machine.name
    changes = ", ".join(change.text for change in shape_changes(record, box))
    if changes and before.running:
        log.warn(f"the spec of {box.name} has changed ({changes}): `kimbox reload {name}` applies that")
    elif changes and before is State.SUSPENDED:
        hint = f"`kimbox reload {name}` applies that after the box has resumed"
        log.warn(f"the spec of {box.name} has changed ({changes}): {hint}")
    if record.image != plan.lock.image and not record.installed:
        log.warn(
            f"the spec of {box.name} now describes another image than the one that this box was created from: "
            + (
                f"`kimbox destroy {name}` and `kimbox clone` create it from the new image"
                if record.purpose is Purpose.CLONE
                else f"`kimbox up --rebuild {name}` gives it a root from that one, and keeps /persistent. If it only "
                f"has more packages, `kimbox up --install {name}` installs these"
            )
        )
