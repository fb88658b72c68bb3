"""The screen of a box: a Unix socket in the folder of its machine, which no other user can enter, and viewers."""

from __future__ import annotations

from pathlib import Path

from kimbox.machine.folder import Machine
from kimbox.run import which
from kimbox.spec.model import Display

#: Name of the socket in the machine's folder.
SOCKET = "display.sock"

#: Protocol -> viewers in the order of preference: program and its argument. In it, {path} is the path of the socket.
VIEWERS = {
    Display.VNC: (
        ("xtigervncviewer", "{path}"),
        ("vncviewer", "{path}"),
        ("remote-viewer", "vnc+unix://{path}"),
    ),
    Display.SPICE: (("remote-viewer", "spice+unix://{path}"),),
}

#: Protocol -> the package of Debian with the first of its viewers.
PACKAGES = {Display.VNC: "tigervnc-viewer", Display.SPICE: "virt-viewer"}


def socket_of(machine: Machine) -> Path:
    """Returns the path of the socket, which exists while the box runs and has a screen."""
    return machine.folder / SOCKET


def viewer(machine: Machine, display: Display) -> tuple[list[str], bool]:
    """Returns the command that shows the screen of a box, and whether its program is installed."""
    found = next((each for each in VIEWERS[display] if which(each[0])), None)
    program, argument = found or VIEWERS[display][0]
    return [program, argument.format(path=socket_of(machine))], found is not None
