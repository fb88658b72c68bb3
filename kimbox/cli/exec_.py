"""kimbox exec: run a program in the box."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import settings
from kimbox.errors import GuestError, UsageError

if TYPE_CHECKING:
    from kimbox.guest.endpoint import Endpoint

#: How ssh(1) ends where the connection failed. A program may end so too.
SSH_FAILED = 255

#: Seconds that a box has to answer in when that is in doubt.
ANSWER_S = 10


def exec_(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[BOX] -- COMMAND [ARG]...", autocompletion=completers.first_box)
    ] = None,
    file: target.File = None,
    start: Annotated[bool, typer.Option("--up", help="Bring the box up first.")] = False,
) -> None:
    """Run a program in a box; stdin, stdout, stderr and the exit status are its own.

    Where the connection is lost meanwhile (the box stops, or does not answer any more) the exit status is 4.

    \b
    Examples:
      kimbox exec -- uname -a
      kimbox exec openkim-dev -- kimbox-al
      kimbox exec --up openkim-dev -- lmp -h
      tar -c data | kimbox exec -- tar -x
    """
    from kimbox.actions.observe import reach
    from kimbox.drivers import registry
    from kimbox.guest import shared

    name, command = target.split(words or [], settings.after)
    if not command:
        raise UsageError("exec needs a command", hint="kimbox exec [BOX] -- COMMAND [ARG]...")
    if start:
        from kimbox.actions import up as starting
        from kimbox.actions.watch import BOOT_TIMEOUT_S

        request = starting.UpRequest(target.project(name, file), timeout_s=settings.timeout_s or BOOT_TIMEOUT_S)
        starting.up(request)
    machine = target.machine(name, file)
    endpoint = reach(machine, "exec")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    code = shared.on_terminal(endpoint, command=shlex.join(command), terminal=terminal)
    if code == SSH_FAILED and not (registry.of(machine).listen() and _answers(endpoint)):
        raise GuestError(
            f"the connection to {machine.name} was lost", hint="see `kimbox status` and `kimbox logs --serial`"
        )
    raise typer.Exit(code)


def _answers(endpoint: Endpoint) -> bool:
    """Whether a login works now: then it was the program, and not ssh, that ended with 255."""
    from kimbox.guest.endpoint import ssh_command
    from kimbox.run import run

    options = ["-oBatchMode=yes", f"-oConnectTimeout={ANSWER_S}", f"-oServerAliveInterval={ANSWER_S}"]
    return run(ssh_command(endpoint, command="true", options=options), check=False).code != SSH_FAILED
