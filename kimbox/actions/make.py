"""kimbox create from a box: makes a machine of a spec, under a name of its own, and does not start it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from kimbox import paths
from kimbox.actions import lifetime
from kimbox.actions.clones.clone import own_forwards
from kimbox.actions.lifecycle.create import create, refuse_existing
from kimbox.files import private_dir
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.spec.load import load_box


def make(project: Project, name: str, settings: Sequence[str]) -> Machine:
    """Makes a machine of a box, with its image if that is missing. Its name may be another one than that of the box.

    `settings`: values of the spec that differ for this machine, as KEY=VALUE. Raises SpecError for an invalid one,
    StateError (`name-taken`) if a machine has that name, and the errors of `make_plan` and `create`.
    """
    box, purpose = load_box(project.source, settings, member=project.box.member), Purpose.BOX
    if name != project.name:
        box, purpose = own_forwards(box), Purpose.CLONE
    machine = Machine(name)
    private_dir(paths.machines_dir())
    with machine.locked():
        refuse_existing(machine)
        create(machine, make_plan(attrs.evolve(project, box=box)), purpose=purpose)
        lifetime.created(box, name).write(machine.folder)
    return machine
