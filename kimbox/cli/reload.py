"""kimbox reload: halt a box and start it again."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import settings
from kimbox.cli.up import bring_up


def reload(
    box: target.Name = None,
    file: target.File = None,
    boot: target.Boot = None,
    once: target.Once = False,
    from_scratch: target.FromScratch = False,
) -> None:
    """Halt a box and start it again with its current spec. --boot and --once are those of `kimbox up`.

    A resnap boot puts back the root that the box kept when it was ready for the first time with this manifest. With
    --from-scratch it does not: all of `setup` and every step run again, and the box keeps the new result.

    kimbox first checks spec, lock, repositories and ports. If one of them has a fault, the box is not halted. A
    suspended box is refused, because its saved memory does not fit another shape.

    \b
    Examples:
      kimbox reload
      kimbox reload openkim-dev
      kimbox reload --boot maintain --once
      kimbox reload --boot resnap --from-scratch
    """
    from kimbox.actions import stop
    from kimbox.actions import up as starting
    from kimbox.actions.observe import check_owner, state
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.bootmode import refuse_sealed
    from kimbox.machine.state import require

    choice = target.choice(boot, once, from_scratch=from_scratch)
    project = target.project(box, file, clones=True, settings=target.RECORDED)  # an invalid spec must not halt the box
    request = starting.UpRequest(project, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S, boot=choice)
    request = target.for_clone(request, box, file)
    machine = request.machine
    check_owner(machine, project, request.purpose)  # a spec whose name another spec has must not halt that machine
    refuse_sealed(machine, choice)
    require("reload", machine.name, state(machine))
    request = starting.plan_restart(request)
    stop.halt(machine)
    bring_up("reload", request)
