"""kimbox clone: start machines from the template of a box."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report, settings
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.project.project import Project

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BOX|URL] NAME...",
        help="The box or the store of a saved one, then a name for each clone. Default: the spec of this folder.",
        autocompletion=completers.boxes,
    ),
]


def clone(
    words: Words = None,
    file: target.File = None,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=1, max=999, help="Number of clones, named NAME-1, NAME-2, ..."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no server. Data that this host does not have is an error.")
    ] = False,
) -> None:
    """Start machines that continue a provisioned box, in less than a second each.

    The first clone makes the template of the box: kimbox starts a machine from spec and lock, provisions it, and saves
    it with its memory. Later clones start from it, until spec, lock, QEMU or this host's processor change. What was
    changed by hand in a box is not in its clones. `kimbox prune` removes templates that no clone uses.

    A clone is a machine as any other: status, ssh, exec, halt, up, suspend and destroy take its name. Before any
    program runs in it, it gets a host name, a machine-id, a boot_id, an ssh host key, the time, and a seed for the
    random generator of its kernel. kimbox chooses the ports of its forwards.

    A program that is running when the template is made continues in every clone with the same memory. If it keeps a
    random generator or a secret in its memory, all clones have the same: see docs/clones.md.

    With the URL of a store, the clones are of the newest save in it, and have what was installed in the saved box. Each
    gets an identity of its own.

    The first word is the box if a box has that name. With -n, the clones of a name are numbered; the default name is
    that of the box.

    \b
    Examples:
      kimbox clone worker
      kimbox clone minimal worker-a worker-b
      kimbox clone minimal -n 8
      kimbox clone /srv/saves/study -n 100
    """
    from kimbox.actions.clones import clone as cloning
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.record import Purpose

    project, names = _parse(words or [], file, count, offline)
    limit_s = settings.timeout_s or BOOT_TIMEOUT_S
    clones = cloning.clone(project, names, timeout_s=limit_s, at_a_time=min(len(names), os.cpu_count() or 1))
    found = []
    for one in clones:
        record = one.machine.record()
        found.append({"name": record.name, "ssh_port": record.ssh_port, "duration_s": round(one.duration_s, 3)})
    result = {"box": project.name, "purpose": str(Purpose.CLONE), "template": clones[0].template, "clones": found}
    lines = [f"{one['name']} is ready: {one['duration_s']:.1f} s, ssh at port {one['ssh_port']}" for one in found]
    report("clone", result, "\n".join(lines))


def _parse(words: list[str], file: Path | None, count: int | None, offline: bool) -> tuple[Project, list[str]]:
    """Returns the project and the names of the clones. Raises UsageError if there is no name, or one is not valid."""
    from kimbox.transfer.stores.opening import is_url

    names = list(words)
    box = names.pop(0) if names and file is None and (is_url(names[0]) or target.is_box(names[0])) else None
    project = target.saved_or_box(box, file, offline=offline)
    if count is not None:
        names = [f"{name}-{number}" for name in names or [project.name] for number in range(1, count + 1)]
    if not names:
        raise UsageError(
            f"no name for the clone of {project.name}",
            code="usage",
            hint=f"`kimbox clone {project.name} NAME` or `kimbox clone {project.name} -n 2`",
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"the name {repeated[0]} is given twice", code="usage", fields={"name": repeated[0]})
    return project, [target.check_name(name) for name in names]
