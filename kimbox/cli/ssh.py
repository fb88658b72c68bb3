"""kimbox ssh: a shell in the box."""

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
            help="The box, and what ssh(1) gets",
            autocompletion=completers.first_box,
        ),
    ] = None,
    file: target.File = None,
) -> None:
    """Open a shell in a box, as the user `vagrant`, who may use sudo.

    What `ssh` and `exec` do in a box shares one connection, which stays for a minute after the last of them: only the
    first pays the handshake. What a login settles, groups say, is settled for all of them. With options of ssh(1)
    there is a connection for that call alone.

    \b
    Examples:
      kimbox ssh
      kimbox ssh openkim-dev
      kimbox ssh openkim-dev -- -L 8888:localhost:8888
      kimbox ssh -- uname -a
    """
    from kimbox.actions.observe import reach
    from kimbox.guest import shared

    box, options = target.split(words or [], settings.after)
    if options and settings.after is None:
        raise UsageError("ssh takes one box", hint="options of ssh(1) stand after `--`; `kimbox exec` runs a program")
    raise typer.Exit(shared.on_terminal(reach(target.machine(box, file)), words=options))
