"""kimbox up: from a spec to a box that is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report, settings
from kimbox.cli.status import summary_of
from kimbox.spec.model import BootMode

if TYPE_CHECKING:
    from kimbox.actions.up import UpRequest

#: Options of `up` alone.
Follow = Annotated[
    bool, typer.Option("--follow", help="Let the box follow the branch of its setup repository, at each boot.")
]
Driver = Annotated[
    str | None, typer.Option("--provider", metavar="NAME", help="Who runs a new box: qemu (the default) or vagrant.")
]


def up(
    box: target.Name = None,
    file: target.File = None,
    no_provision: Annotated[
        bool, typer.Option("--no-provision", help="Boot the box and change nothing in it.")
    ] = False,
    boot: target.Boot = None,
    once: target.Once = False,
    follow: Follow = False,
    driver: Driver = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Never write the lock: one that is missing or disagrees is an error.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server: what this machine does not have yet is an error.")
    ] = False,
) -> None:
    """Bring a box to ready: build or fetch its image, boot it, provision it, check its probes.

    Only what is missing is done: a halted box is started, one that is ready is left alone. What made the box go back to
    its last good manifest is not tried again: that is told, and `kimbox provision` does.

    A step runs again when its text or a repository that it uses has changed. Steps that ran under other commits than
    the box has now, and were not run again, are named, each with the command that does it.

    --boot chooses the root for this start, and for the reboots of the guest until the next start: resnap is a new
    snapshot, every change is gone; keep the snapshot as it was left; maintain the real root, which later snapshots are
    made of, and where nothing is provisioned. With --once it holds for the first boot alone. A box that runs in another
    mode takes `kimbox reload --boot MODE`.

    --follow is `follow: true` of the repository `setup` for this time: at each boot the box fetches the newest commit
    of the branch `ref` by itself and is provisioned with it. A commit that fails costs a boot; without a network the
    box goes on with what it has. `kimbox status` shows the commit. The next `kimbox up` without --follow ends it.

    --provider vagrant has Vagrant run the box, under libvirt, or VirtualBox where that alone is installed; every later
    verb knows it.

    --locked is for machines that must not decide: the exit status is 3 where `kimbox lock --check` finds a fault.
    --offline takes commits from this machine's mirrors and images from its store. Both go together.

    \b
    Examples:
      kimbox up
      kimbox up openkim-dev
      kimbox up -f boxes/study.yaml --timeout 10m
      kimbox up --boot resnap
      kimbox up --locked --offline
      kimbox up --provider vagrant
    """
    import attrs

    from kimbox.actions.up import UpRequest, following
    from kimbox.actions.watch import BOOT_TIMEOUT_S

    choice = target.choice(boot, once)
    project = target.project(box, file, frozen=locked, offline=offline)
    if follow:
        project = attrs.evolve(project, box=following(project.box))
    limit = settings.timeout_s or BOOT_TIMEOUT_S
    bring_up("up", UpRequest(project, provision=not no_provision, timeout_s=limit, boot=choice, driver=driver))


def bring_up(verb: str, request: UpRequest) -> None:
    """Brings a box up and reports it, for `up` and `reload`."""
    from kimbox.actions import up as starting
    from kimbox.guest.stale import words
    from kimbox.machine.bootmode import MAINTAINED
    from kimbox.machine.folder import machine_of
    from kimbox.machine.state import State

    machine = machine_of(request.project.name)
    was = summary_of(machine)
    before = starting.up(request)
    summary = summary_of(machine)
    text = f"{summary['name']} is {summary['state']}"
    if summary["stale"]:
        text = "\n".join([f"{text}, but made under other commits:", *(f"  {words(step)}" for step in summary["stale"])])
    elif before is State.READY and all(summary[key] == was[key] for key in ("manifest", "provenance")):
        text += ", as it was"
    if summary["boot"] == BootMode.MAINTAIN:
        text += "\n" + MAINTAINED.format(name=summary["name"])
    report(verb, summary | {"before": str(before)}, text)
