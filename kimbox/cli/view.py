"""kimbox view: show the screen of a box."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report, settings
from kimbox.errors import StateError


def view(
    box: target.Name = None,
    file: target.File = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the command that shows the screen, and start nothing.")
    ] = False,
) -> None:
    """Show the screen of a box that has `display: vnc` or `display: spice` in its spec.

    It starts a viewer that is installed: TigerVNC or gvncviewer for VNC, remote-viewer for SPICE. Without one, or
    without a graphical session, it prints the command. The screen is at a Unix socket that no other user can reach: no
    network port is open. A sealed box has no screen.

    The JSON has: name, display, socket (its path) and command (in words). With --json no viewer is started.

    \b
    Examples:
      kimbox view
      kimbox view desktop
      kimbox view desktop --print
    """
    import shlex

    from kimbox.actions.observe import refuse_sealed, state
    from kimbox.machine import display
    from kimbox.machine.state import require
    from kimbox.run import attached

    machine = target.machine(box, file)
    refuse_sealed(machine, "show")
    require("view", machine.name, state(machine))
    kind = machine.record().display
    if kind is None:
        raise StateError(
            f"{machine.name} has no screen",
            code="no-display",
            hint="write `display: vnc` into its spec; then `kimbox reload` starts it with one",
            fields={"name": machine.name},
        )
    viewer = display.viewer(machine, kind)
    has_session = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if viewer.is_installed and has_session and not print_only and not settings.json:
        raise typer.Exit(attached(viewer.command))
    socket = display.socket_of(machine)
    text = shlex.join(viewer.command)
    if not viewer.is_installed:
        text += f"\n# {viewer.program} is not installed here: sudo apt-get install {display.PACKAGES[kind]}"
    result = {"name": machine.name, "display": str(kind), "socket": str(socket), "command": viewer.command}
    report("view", result, text)
