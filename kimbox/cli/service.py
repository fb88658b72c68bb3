"""kimbox service: let the user's systemd keep boxes up."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import attrs
import typer

from kimbox.cli import target
from kimbox.cli.output import report, table
from kimbox.errors import UsageError


class Act(StrEnum):
    """What `kimbox service` does."""

    INSTALL = "install"
    REMOVE = "remove"
    STATUS = "status"


def service(
    act: Annotated[Act, typer.Argument(metavar="install|remove|status", help="What to do with the service.")],
    box: target.Name = None,
    file: target.File = None,
    count: Annotated[
        int | None,
        typer.Option("--count", metavar="N", min=1, max=200, help="Keep N clones of the box up, in place of the box."),
    ] = None,
) -> None:
    """Keep a box up: start it with the host, and again when QEMU has crashed.

    `install` writes a unit for the user's systemd and starts it. If QEMU crashes, systemd starts the box again, after
    10 s at first and 5 min at most, and gives up after 5 starts within an hour; `status` and `kimbox status` say so. A
    guest that hangs is reset by its watchdog: `watchdog: 2m` in the spec.

    With --count, the machines are the clones BOX-1 to BOX-N. Each start makes a new clone, also when one has shut
    itself down. Another --count changes their number.

    `kimbox halt`, `stop` and `suspend` hold for a box with a service: it starts again with the host, or by
    `install`. `remove` shuts the box, or all clones of the pool, down; their disks stay. `kimbox destroy` removes the
    service, too. For a sealed box, each such start is the host's: its disk is put back to its image.

    The JSON has services: name, unit, state, result, restarts, is_enabled and gave_up of each.

    \b
    Examples:
      kimbox service install openkim-dev
      kimbox service install worker --count 4
      kimbox service status
      kimbox service remove worker
    """
    from kimbox.actions import service as services

    if count is not None and act is not Act.INSTALL:
        raise UsageError("--count is only for `kimbox service install`", code="usage", fields={"option": "--count"})
    if act is Act.INSTALL:
        found = services.install(target.project(box, file, settings=target.RECORDED), count)
        text = "\n".join(f"{one.name} is kept up by {one.unit}" for one in found)
    elif act is Act.REMOVE:
        name = target.machine(box, file).name
        found = services.services(services.names_of(name))
        for one in found:
            services.remove(one.name)
        text = "\n".join(f"{one.name} has no service any more" for one in found) or f"{name} has no service"
    else:
        is_all = box is None and file is None
        found = services.services(services.installed() if is_all else services.names_of(target.machine(box, file).name))
        header = ["NAME", "STATE", "RESULT", "RESTARTS", "WITH THE HOST"]
        rows = [
            [one.name, one.state, one.result, str(one.restarts), "yes" if one.is_enabled else "no"] for one in found
        ]
        text = table([header, *rows]) if rows else "there is no service"
    report("service", {"services": [attrs.asdict(one) | {"gave_up": one.gave_up} for one in found]}, text)
