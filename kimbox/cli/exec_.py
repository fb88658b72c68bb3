"""kimbox exec: run a command in a box."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import settings
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.machine.folder import Machine


def exec_(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BOX] -- COMMAND [ARG]...",
            help="Name of the box, and the command with its arguments.",
            autocompletion=completers.first_box,
        ),
    ] = None,
    file: target.File = None,
    no_stdin: Annotated[
        bool,
        typer.Option("--no-stdin", "-n", help="Give the command an empty stdin, as in a `while read` loop."),
    ] = False,
    start: Annotated[bool, typer.Option("--up", help="Run `kimbox up` first.")] = False,
    halt: Annotated[bool, typer.Option("--halt", help="Shut the box down when the command has ended.")] = False,
) -> None:
    """Run a command in a box. stdin, stdout, stderr and the exit status are those of the command.

    A command that signal N killed has the exit status 128+N, as in a shell. SIGINT (Ctrl-C), SIGTERM and SIGHUP of
    `kimbox exec` are sent to the command and to what it started; what does not end within 5 s is killed.

    As with ssh(1), `exec` ends when all programs that the command started have closed its output. A program that
    continues in the background needs files of its own: `sh -c 'program >log 2>&1 </dev/null &'`.

    With --halt the box is shut down afterwards, also if the command has failed; the exit status is still that of the
    command.

    If the connection is lost during the command (the box stops, or does not answer any more), the exit status is 4.

    \b
    Examples:
      kimbox exec -- uname -a
      kimbox exec openkim-dev -- kimbox-al
      kimbox exec --up openkim-dev -- lmp -h
      kimbox exec --up --halt -- ./nightly-run
      tar -c data | kimbox exec -- tar -x
      while read -r name; do kimbox exec -n -- make "$name"; done <names
    """
    name, command = target.split(words or [], settings.after)
    if not command:
        raise UsageError("exec requires a command", code="usage", hint="kimbox exec [BOX] -- COMMAND [ARG]...")
    if start:
        from kimbox.actions import up as starting
        from kimbox.actions.watch import BOOT_TIMEOUT_S

        project = target.project(name, file, settings=target.RECORDED)
        request = starting.UpRequest(project, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S)
        starting.up(request)
    raise typer.Exit(_execute(target.machine(name, file), command, no_stdin=no_stdin, halt=halt))


def _execute(machine: Machine, command: list[str], *, no_stdin: bool, halt: bool) -> int:
    """Runs a command in a box, and then shuts the box down if `halt`. Returns the exit status."""
    from kimbox.actions import stop
    from kimbox.actions.observe import check_connection, reach
    from kimbox.guest import shared

    endpoint = reach(machine, "exec", shares=True)
    try:
        terminal = not no_stdin and sys.stdin.isatty() and sys.stdout.isatty()
        code = shared.execute(endpoint, command, terminal=terminal, no_input=no_stdin)
        if code == shared.SSH_FAILED:
            check_connection(machine, endpoint)
    finally:
        if halt:
            stop.halt(machine)
    return code
