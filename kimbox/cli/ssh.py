"""kimbox ssh: open a shell in a box."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import settings
from kimbox.errors import UsageError


def ssh(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BOX] [-- SSH-ARGUMENT...]",
            help="Name of the box, and arguments for ssh(1).",
            autocompletion=completers.first_box,
        ),
    ] = None,
    file: target.File = None,
) -> None:
    """Open a shell in a box, as the user `vagrant`, who may use sudo.

    All calls of `kimbox ssh` and `kimbox exec` for a box share one connection, so that only the first call needs the
    handshake. The connection stays open for a minute after the last call. The groups of the user, and everything else
    that a login sets, are those of the first call. A call with options of ssh(1) has a connection of its own.

    \b
    Examples:
      kimbox ssh
      kimbox ssh openkim-dev
      kimbox ssh openkim-dev -- -N -L 8888:127.0.0.1:8888     # a notebook in the box, at the same address here
      kimbox ssh -- uname -a
    """
    from kimbox.actions.observe import check_connection, reach
    from kimbox.guest import shared

    box, options = target.split(words or [], settings.after)
    if options and settings.after is None:
        raise UsageError(
            "ssh takes one box",
            code="usage",
            hint="write options of ssh(1) after `--`; `kimbox exec` runs a command",
        )
    machine = target.machine(box, file)
    endpoint = reach(machine)
    code = shared.shell(endpoint, options)
    if code == shared.SSH_FAILED:
        check_connection(machine, endpoint, may_end=True)
    raise typer.Exit(code)
