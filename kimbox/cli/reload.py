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
    from kimbox.actions import life
    from kimbox.actions.observe import check_owner
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.bootmode import refuse_sealed
    from kimbox.machine.folder import Machine

    choice = target.choice(boot, once)
    spec, shipped = target.spec(box, file)  # a spec that does not hold leaves the box running
    machine = Machine(spec.name)
    check_owner(machine, spec.source, shipped)  # nor does one whose name another spec has
    refuse_sealed(machine, choice)
    life.halt(machine)
    bring_up("reload", life.Up(spec, shipped, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S, boot=choice))
