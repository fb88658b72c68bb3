"""kimbox provision: make a running box what its spec says, again."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report, settings
from kimbox.cli.status import facts_of


def provision(box: target.Name = None, file: target.File = None) -> None:
    """Send a running box its manifest again and run what has not been done: after a failure, or a change of the spec.

    Where the box has gone back to its last good manifest, this tries the one that failed once more.

    \b
    Examples:
      kimbox provision
      kimbox provision openkim-dev
    """
    from kimbox.machine import life
    from kimbox.machine.folder import Machine
    from kimbox.machine.watch import BOOT_TIMEOUT_S

    spec, shipped = target.spec(box, file)
    life.provision(life.Up(spec, shipped, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S))
    facts = facts_of(Machine(spec.name))
    report("provision", facts, f"{spec.name} is {facts['state']}")
