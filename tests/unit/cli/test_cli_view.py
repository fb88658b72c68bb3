"""The screen of a box (`kimbox view`), and windows of its programs (`kimbox ssh -X`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox, error, result

from kimbox import run
from kimbox.actions import observe
from kimbox.cli import target
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed
from kimbox.machine.state import State
from kimbox.spec.model import Display

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def viewers(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that replaces the PATH. A box runs, and this session has a screen."""
    folder = world / "viewers"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr("kimbox.run.SYSTEM_PATHS", ())
    monkeypatch.setattr("kimbox.actions.observe.state", lambda _: State.READY)
    return folder


def install(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\nexit 7\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("display", "programs", "command"),
    [
        (Display.VNC, ("gvncviewer", "vncviewer", "remote-viewer"), ["gvncviewer", "{socket}"]),
        (Display.VNC, ("vncviewer", "remote-viewer"), ["vncviewer", "{socket}"]),
        (Display.SPICE, ("vncviewer", "remote-viewer"), ["remote-viewer", "spice+unix://{socket}"]),
    ],
)
def test_a_viewer_is_started(
    kimbox: Kimbox,
    viewers: Path,
    monkeypatch: pytest.MonkeyPatch,
    display: Display,
    programs: tuple[str, ...],
    command: list[str],
) -> None:
    """The first one that is installed, and its exit code is that of `view`. --print starts none."""
    machine = makemachine.make_machine(display=display)
    words = [word.format(socket=machine.folder / "display.sock") for word in command]
    for program in programs:
        install(viewers, program)
    started: list[list[str]] = []
    monkeypatch.setattr("kimbox.run.attached", lambda argv: started.append(argv) or 7)
    assert 7 == kimbox("view", "tiny")[0]
    assert [words] == started
    code, out, _ = kimbox("view", "tiny", "--print")
    assert (0, words) == (code, out.split())
    answer = result(kimbox("--json", "view", "tiny")[1], "view")
    assert (str(display), words) == (answer["display"], answer["command"])
    monkeypatch.delenv("DISPLAY")
    assert (0, words) == (kimbox("view", "tiny")[0], kimbox("view", "tiny")[1].split())
    assert 1 == len(started)


def test_viewers_that_cannot_connect_to_a_unix_socket(kimbox: Kimbox, viewers: Path) -> None:
    """remote-viewer with VNC, and TightVNC, which Debian may install as vncviewer."""
    makemachine.make_machine(display=Display.VNC)
    install(viewers, "remote-viewer")
    install(viewers, "xtightvncviewer")
    (viewers / "vncviewer").symlink_to("xtightvncviewer")
    code, out, _ = kimbox("view", "tiny")
    assert (0, True) == (code, out.endswith("sudo apt-get install tigervnc-viewer\n"))


def test_a_path_that_is_too_long_for_a_socket(
    kimbox: Kimbox, viewers: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The viewer starts in the folder with the socket."""
    monkeypatch.setenv("KIMBOX_HOME", str(world / ("x" * 100)))
    machine = makemachine.make_machine(display=Display.SPICE)
    install(viewers, "remote-viewer")
    command = result(kimbox("--json", "view", "tiny")[1], "view")["command"]
    assert ["env", "-C", str(machine.folder), "remote-viewer", "spice+unix://./display.sock"] == command


def test_without_a_viewer_the_command_is_printed(kimbox: Kimbox, viewers: Path) -> None:
    """With the command that installs one."""
    makemachine.make_machine(display=Display.SPICE)
    code, out, _ = kimbox("view", "tiny")
    assert (0, True) == (code, out.endswith("sudo apt-get install virt-viewer\n"))


def test_a_box_without_a_screen(kimbox: Kimbox, viewers: Path) -> None:
    """One whose spec names none, and a sealed one."""
    makemachine.make_machine()
    makemachine.make_machine("closed", sealed=Sealed("worker", "example.org"))
    assert "no-display" == error(kimbox("--json", "view", "tiny")[1], "view")["code"]
    assert "box-sealed" == error(kimbox("--json", "view", "closed")[1], "view")["code"]


def test_ssh_with_windows(kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a connection of its own, and needs a screen here and xauth in the box, which ssh does not trust."""
    calls: list[Any] = []
    has_xauth = [True]
    monkeypatch.setattr(target, "machine", lambda *_: Machine("tiny"))
    monkeypatch.setattr(observe, "reach", lambda *_, **__: makemachine.make_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.succeeds", lambda _, command: has_xauth[0] and command.endswith("xauth"))
    monkeypatch.setattr("kimbox.guest.shared.attached", lambda argv, **_: calls.append(argv) or 0)
    monkeypatch.setenv("DISPLAY", ":9")
    assert 0 == kimbox("ssh", "-X", "tiny", "--", "xterm")[0]
    assert ["127.0.0.1", "-X", "xterm"] == calls[-1][-3:]
    settings = run.run(["ssh", "-G", *calls[-1][1:-1]]).stdout.splitlines()  # Debian's default is yes
    assert {"forwardx11 yes", "forwardx11trusted no"} <= set(settings)
    has_xauth[0] = False
    assert "no-xauth" == error(kimbox("--json", "ssh", "-X", "tiny")[1], "ssh")["code"]
    monkeypatch.delenv("DISPLAY")
    failed = error(kimbox("--json", "ssh", "-X", "tiny")[1], "ssh")
    assert ("no-display", 2) == (failed["code"], failed["exit_code"])
    assert 1 == len(calls)
