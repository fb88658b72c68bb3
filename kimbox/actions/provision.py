"""kimbox provision: sends a running box its manifest again, whole or a part of it."""

from __future__ import annotations

from collections.abc import Sequence

from kimbox.actions.lifecycle.readiness import bring_to_ready, check_root
from kimbox.actions.lifecycle.start import mend_record
from kimbox.actions.observe import check_owner, refuse_sealed, state
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.guest.delivery import Part
from kimbox.machine import bootmode
from kimbox.machine.folder import machine_of
from kimbox.machine.state import require
from kimbox.project.plan import make_plan, make_unpinned_plan
from kimbox.project.project import Project
from kimbox.project.unpinned import Instead


def provision(
    project: Project,
    *,
    instead: Sequence[Instead] = (),
    part: Part | None = None,
    timeout_s: float = BOOT_TIMEOUT_S,
) -> None:
    """Sends the manifest to a running box and waits until the box is ready.

    `instead`: repositories that run in place of locked ones; `part`: only this part of the manifest runs. Raises
    StateError if the box does not run, is sealed or in maintain mode, and what `make_plan` and the guest raise.
    """
    machine = machine_of(project.name)
    refuse_sealed(machine, "provision")
    if part:
        part.check(project.box)
    with machine.locked():
        check_owner(machine, project)
        before = state(machine)
        require("provision", machine.name, before)
        bootmode.refuse_to_provision(machine)
        check_root(machine)
        mend_record(machine, before)
        image = machine.record().image
        plan = make_unpinned_plan(project, instead, made_from=image) if instead else make_plan(project, made_from=image)
        bring_to_ready(machine, plan, timeout_s=timeout_s, again=True, part=part)
