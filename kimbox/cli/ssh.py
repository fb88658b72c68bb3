"""kimbox ssh: open a shell in a box."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import settings
from kimbox.errors import StateError, UsageError

if TYPE_CHECKING:
    from kimbox.guest.endpoint import Endpoint


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
    x11: Annotated[
        bool, typer.Option("-X", "--x11", help="Show the windows of programs of the box on this screen.")
    ] = False,
) -> None:
    """Open a shell in a box, as the user `vagrant`, who may use sudo.

    All calls of `kimbox ssh` and `kimbox exec` for a box share one connection, so that only the first call needs the
    handshake. The connection stays open for a minute after the last call. The groups of the user, and everything else
    that a login sets, are those of the first call. A call with options of ssh(1) has a connection of its own.

    With -X, programs of the box open windows on the screen of this session. The box needs the package xauth
    (`image.packages` of the spec). ssh treats the box as untrusted: its programs cannot read the keys and windows of
    other programs.

    \b
    Examples:
      kimbox ssh
      kimbox ssh openkim-dev
      kimbox ssh openkim-dev -- -N -L 8888:127.0.0.1:8888     # a notebook in the box, here at the same address
      kimbox ssh -- uname -a
      kimbox ssh -X desktop -- xterm
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
    endpoint = reach(machine, shares=not (x11 or options))
    if x11:
        _need_x11(machine.name, endpoint)
        options = ["-X", *options]
    code = shared.shell(endpoint, options)
    if code == shared.SSH_FAILED:
        check_connection(machine, endpoint, may_end=True)
    raise typer.Exit(code)


def _need_x11(name: str, endpoint: Endpoint) -> None:
    """Raises UsageError or StateError if no windows of a box can be shown, which ssh(1) would not say."""
    from kimbox.guest import shared

    if not os.environ.get("DISPLAY"):
        raise UsageError(
            "no screen for the windows of the box: DISPLAY is not set",
            code="no-display",
            hint="run it in a graphical session; `ssh -X` to this host gives one from another host",
        )
    if not shared.succeeds(endpoint, "command -v xauth"):
        raise StateError(
            f"{name} has no program xauth, so its programs cannot open windows here",
            code="no-xauth",
            hint=f"add xauth to `image.packages` of its spec; `kimbox up --rebuild {name}` then brings it",
            fields={"name": name},
        )
