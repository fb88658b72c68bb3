"""The screen of a box: a Unix socket in the folder of its machine, which no other user can enter, and viewers."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from kimbox.machine.folder import Machine
from kimbox.run import which
from kimbox.spec.model import Display

#: Name of the socket in the machine's folder.
SOCKET = "display.sock"

#: Maximum length of the path of a socket, in bytes (unix(7)).
MAX_PATH_BYTES = 107

#: Protocol -> viewers in the order of preference: program and its argument. In it, {path} is the path of the socket.
#: remote-viewer has no VNC at a Unix socket.
VIEWERS = {
    Display.VNC: (("xtigervncviewer", "{path}"), ("gvncviewer", "{path}"), ("vncviewer", "{path}")),
    Display.SPICE: (("remote-viewer", "spice+unix://{path}"),),
}

#: Start of the name of a program that Debian may install as vncviewer, and that connects to no Unix socket.
UNUSABLE = "xtightvnc"

#: Protocol -> the package of Debian with the first of its viewers.
PACKAGES = {Display.VNC: "tigervnc-viewer", Display.SPICE: "virt-viewer"}


@attrs.frozen
class Viewer:
    """A program that shows the screen of a box, and the command that starts it."""

    program: str
    command: list[str]
    is_installed: bool


def socket_of(machine: Machine) -> Path:
    """Returns the path of the socket, which exists while the box runs and has a screen."""
    return machine.folder / SOCKET


def viewer(machine: Machine, display: Display) -> Viewer:
    """Returns the first viewer that is installed, or else the first one."""
    found = next((each for each in VIEWERS[display] if _is_usable(each[0])), None)
    program, argument = found or VIEWERS[display][0]
    path, command = str(socket_of(machine)), []
    if len(os.fsencode(path)) > MAX_PATH_BYTES:  # each of the viewers accepts a path relative to its working directory
        path, command = f"./{SOCKET}", ["env", "-C", str(machine.folder)]
    return Viewer(program, [*command, program, argument.format(path=path)], found is not None)


def _is_usable(program: str) -> bool:
    path = which(program)
    return path is not None and not Path(path).resolve().name.startswith(UNUSABLE)
