"""kimbox provision: sends a running box its manifest again, all of it or a part."""

from __future__ import annotations

from collections.abc import Sequence

from kimbox.actions.lifecycle.readiness import bring_to_ready, check_root
from kimbox.actions.lifecycle.start import repair_record
from kimbox.actions.observe import check_owner, refuse_sealed, state
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.guest.delivery import Part
from kimbox.machine import bootmode
from kimbox.machine.folder import machine_of
from kimbox.machine.state import require
from kimbox.project.plan import make_plan, make_unpinned_plan
from kimbox.project.project import Project
from kimbox.project.unpinned import Replacement


def provision(
    project: Project,
    *,
    replacements: Sequence[Replacement] = (),
    part: Part | None = None,
    timeout_s: float = BOOT_TIMEOUT_S,
) -> None:
    """Sends the manifest to a running box and waits until the box is ready.

    `replacements`: used in place of locked repositories. `part`: the guest runs only this part of the manifest. Raises
    StateError if the box does not run, is sealed or is in maintain mode, GuestError if the guest fails, and the errors
    of `make_plan`.
    """
    machine = machine_of(project.name)
    refuse_sealed(machine, "provision")
    if part:
        part.check(project.box)
    with machine.locked():
        check_owner(machine, project, is_locked=True)
        before = state(machine)
        require("provision", machine.name, before)
        bootmode.refuse_to_provision(machine)
        check_root(machine)
        repair_record(machine, before)
        image = machine.record().image
        if replacements:
            plan = make_unpinned_plan(project, replacements, made_from=image)
        else:
            plan = make_plan(project, made_from=image)
        bring_to_ready(machine, plan, timeout_s=timeout_s, must_send=True, part=part)
