"""kimbox up: start a box, from a spec to the state ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kimbox.cli import several, target
from kimbox.cli.output import report, settings
from kimbox.cli.status import summary_of
from kimbox.spec.model import BootMode

if TYPE_CHECKING:
    from pathlib import Path

    from kimbox.actions.up import UpRequest
    from kimbox.guest.events import Event
    from kimbox.machine.bootmode import Choice
    from kimbox.machine.folder import Machine

#: Options that only `up` has.
Follow = Annotated[
    bool, typer.Option("--follow", help="At each boot, use the newest commit of the branch of the setup repository.")
]
Driver = Annotated[
    str | None,
    typer.Option("--provider", metavar="NAME", help="What runs a new box: qemu (the default), vagrant or openstack."),
]


NoProvision = Annotated[bool, typer.Option("--no-provision", help="Boot the box, and change nothing in it.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Contact no server. Data that this host does not have is an error.")
]
Cold = Annotated[bool, typer.Option("--cold", help="Boot a new box, also if its spec has `warm: true`.")]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild", help="If the image of the spec has changed, give the box a root from it, and keep /persistent."
    ),
]
Install = Annotated[
    bool, typer.Option("--install", help="Install the packages that the lock has more than the box, and nothing else.")
]
Locked = Annotated[
    bool, typer.Option("--locked", help="Never write the lock. A lock that is missing or does not match is an error.")
]


def up(
    box: target.Name = None,
    file: target.File = None,
    no_provision: NoProvision = False,
    boot: target.Boot = None,
    once: target.Once = False,
    follow: Follow = False,
    driver: Driver = None,
    cold: Cold = False,
    rebuild: Rebuild = False,
    install: Install = False,
    locked: Locked = False,
    offline: Offline = False,
    set_values: target.Set = None,
    unset: target.Unset = None,
) -> None:
    """Start a box, until it is ready: build or download its image, boot it, provision it, check its probes.

    kimbox does only what is missing: it starts a halted box, and does not change a box that is ready. If the box
    returned to its last good manifest, kimbox does not attempt the failed manifest again. It reports the failure;
    `kimbox provision` makes another attempt.
    A step runs again if its text or a repository that it uses has changed. kimbox lists the steps that ran under other
    commits and did not run again.

    --boot selects the root for this start, and for reboots of the guest until the next start. resnap: a new snapshot,
    all earlier changes are lost. keep: the existing snapshot. maintain: the real root, from which later snapshots are
    made; nothing is provisioned. With --once, the mode is for the first boot only. For a box that runs in another mode,
    use `kimbox reload --boot MODE`.

    --follow acts as `follow: true` of the repository `setup` until the next `kimbox up` without --follow. With
    --provider vagrant, Vagrant runs the box, also in later verbs: under libvirt, or under VirtualBox if only that is
    installed. With --provider openstack, the box is an instance in a cloud: `openstack:` in the spec has its flavor and
    network, and the image is published before (`kimbox publish`). If the spec has `warm: true`, a new box continues the
    template of the box, which is made if it is missing, as `kimbox clone` does; with --cold it boots.

    --set changes a value of the spec for this box alone. KEY is the path of a key, such as disk.volumes.root, and VALUE
    is YAML on one line. It is checked like the spec, and later verbs use it, too, until --unset KEY. It is no place for
    a secret. kimbox.lock stays that of the spec.

    --rebuild is for a spec or a lock with another image than that of the box, for example with one package more. The
    new root is provisioned as that of a new box; /persistent and the paths in `keep` of the spec stay. The disk before
    is the snapshot `former`: `kimbox snapshot restore former` exchanges the two. --install keeps the root: it brings
    the packages that were added, at the versions of the lock, into the running box, and refuses any other change.

    --locked is for automation: the exit status is 3 if `kimbox lock --check` finds a fault. --offline takes commits
    from the mirrors and images from the store of this host.

    \b
    Examples:
      kimbox up
      kimbox up openkim-dev
      kimbox up director -f site.yaml --timeout 10m
      kimbox up --locked --offline
      kimbox up --provider vagrant
      kimbox up --set memory=4GiB --set cpus=4
      kimbox up --rebuild
    """
    choice, changes = target.choice(boot, once), target.Settings(set_values or (), unset or ())
    options = Options(choice, changes, not no_provision, follow, driver, cold, rebuild, install, locked, offline)
    _start(box, file, options)


def _start(box: str | None, file: Path | None, options: Options) -> None:
    """Starts one box, or those of a spec with several."""
    if found := target.several(box, file):
        several.run("up", *found, _words_of(options))
    else:
        bring_up("up", request_of(box, file, options))


@attrs.frozen
class Options:
    """The options of `up`."""

    choice: Choice
    changes: target.Settings
    provision: bool
    follow: bool
    driver: str | None
    cold: bool
    rebuild: bool
    install: bool
    locked: bool
    offline: bool


def _words_of(options: Options) -> several.Options:
    """Returns the options for a kimbox that starts one of several boxes."""
    return {
        "--no-provision": not options.provision, "--boot": options.choice.mode, "--once": options.choice.once,
        "--follow": options.follow, "--provider": options.driver, "--cold": options.cold, "--locked": options.locked,
        "--offline": options.offline, "--rebuild": options.rebuild, "--install": options.install,
        "--set": options.changes.new, "--unset": options.changes.removed,
    }  # fmt: skip


def request_of(name: str | None, file: Path | None, options: Options) -> UpRequest:
    """Returns the request for a box or a clone, by its name or spec."""
    from kimbox.actions.up import UpRequest, following
    from kimbox.actions.watch import BOOT_TIMEOUT_S

    project = target.project(
        name, file, frozen=options.locked, offline=options.offline, clones=True, settings=options.changes
    )
    if options.follow:
        project = attrs.evolve(project, box=following(project.box))
    request = UpRequest(
        project,
        provision=options.provision,
        timeout_s=settings.timeout_s or BOOT_TIMEOUT_S,
        boot=options.choice,
        driver=options.driver,
        cold=options.cold,
        rebuild=options.rebuild,
        install=options.install,
    )
    return target.for_clone(request, name, file)


def bring_up(verb: str, request: UpRequest) -> None:
    """Starts a box and prints its summary, for `up` and `reload`."""
    from kimbox.actions import up as starting
    from kimbox.guest.stale import words
    from kimbox.machine.bootmode import MAINTAINED
    from kimbox.machine.state import State

    machine = request.machine
    old_work = _work(machine)
    old_state = starting.up(request)
    summary = summary_of(machine)
    text = f"{summary['name']} is {summary['state']}"
    if summary["stale"]:
        steps = [f"  {words(step)}" for step in summary["stale"]]
        text = "\n".join([f"{text}, but has steps that ran under other commits:", *steps])
    elif old_state is State.READY and _work(machine) == old_work:
        text += ", as it was"
    if summary["boot"] == BootMode.MAINTAIN:
        text += "\n" + MAINTAINED.format(name=summary["name"])
    report(verb, summary | {"before": str(old_state)}, text)


def _work(machine: Machine) -> list[Event]:
    """The events of the present boot that report a boot, a provisioning, its steps or its result."""
    from kimbox.machine.state import DONE

    names = {"booting", "provisioning", "step", "box", *DONE, "failed"}
    return [event for event in machine.boot_events() if event.name in names]
