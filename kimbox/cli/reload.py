"""kimbox reload: halt and up."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import settings
from kimbox.cli.up import bring_up


def reload(
    box: target.Name = None, file: target.File = None, boot: target.Boot = None, once: target.Once = False
) -> None:
    """Shut a box down and bring it up again, with what its spec says now; --boot and --once are those of `up`.

    \b
    Examples:
      kimbox reload
      kimbox reload openkim-dev
      kimbox reload --boot maintain --once
    """
    from kimbox.actions import stop
    from kimbox.actions.observe import check_owner
    from kimbox.actions.up import UpRequest
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.bootmode import refuse_sealed
    from kimbox.machine.folder import machine_of

    choice = target.choice(boot, once)
    project = target.project(box, file)  # a spec with faults leaves the box running
    machine = machine_of(project.name)
    check_owner(machine, project)  # so does a spec whose name another spec owns
    refuse_sealed(machine, choice)
    stop.halt(machine)
    bring_up("reload", UpRequest(project, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S, boot=choice))
