"""The terminal picture of the README: script/picture records real output, without names and paths of the host."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kimbox import run

ROOT = Path(__file__).resolve().parents[2]

#: The picture that the README shows.
PICTURE = ROOT / "docs/kimbox-up.svg"

#: Maximum size of the picture in the repository.
MAX_BYTES = 60_000


def picture(file: Path, *commands: str, home: Path = Path("/nonexistent")) -> run.Completed:
    """Runs script/picture with the Python of the tests."""
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "KIMBOX_HOME": str(home)}
    return run.run([sys.executable, ROOT / "script/picture", file, *commands], check=False, env=env)


def shown(file: Path) -> str:
    """All text of a picture, in order, with ordinary blanks."""
    root = ElementTree.fromstring(file.read_text())  # noqa: S314 - our own file
    texts = ("".join(node.itertext()).replace("\xa0", " ") for node in root.iter("{http://www.w3.org/2000/svg}text"))
    return "\n".join(text for text in texts if text.strip())


def test_a_picture_shows_commands_and_their_real_output(tmp_path: Path) -> None:
    """Commands, stdout and stderr are in the picture, and the same output gives the same bytes."""
    file, second = tmp_path / "a.svg", tmp_path / "b.svg"
    commands = ["kimbox --version", "kimbox validate minimal"]
    assert picture(file, *commands).ok
    assert picture(second, *commands).ok
    version = run.run([Path(sys.executable).parent / "kimbox", "--version"]).stdout.strip()
    assert [] == [text for text in [*commands, version] if text not in shown(file)]
    assert file.read_bytes() == second.read_bytes()


def test_a_picture_shows_what_stays_on_a_terminal(tmp_path: Path) -> None:
    """Commands run in a terminal. The picture contains the lines above a spinner, but not the frames of the spinner."""
    file = tmp_path / "a.svg"
    code = "from rich.console import Console\nc = Console()\n"
    code += "with c.status('turning ' * 25) as s:\n    s.update(spinner='dots')  # draws its first frame\n"
    code += "    c.print(c.is_terminal)\n    c.print('[red]red')"
    (tmp_path / "spin.py").write_text(code)
    assert picture(file, f"{sys.executable} {tmp_path}/spin.py").ok
    assert ["True", "red"] == shown(file).splitlines()[-2:]
    assert "turning" not in shown(file)


def test_a_picture_contains_no_path_of_its_host(tmp_path: Path) -> None:
    """The folder of kimbox becomes the default folder, and the user's home folder becomes `~`."""
    file = tmp_path / "a.svg"
    assert picture(file, "printenv KIMBOX_HOME HOME", home=tmp_path / "home").ok
    assert ["~/.local/share/kimbox", "~"] == shown(file).splitlines()[-2:]


@pytest.mark.parametrize("command", ["false", f"echo it runs on {socket.gethostname()}", "no-such-program"])
def test_a_command_that_cannot_be_shown_writes_no_picture(tmp_path: Path, command: str) -> None:
    """A failed command, and output with the name of this host, are errors."""
    if socket.gethostname() in command and socket.gethostname() == "localhost":
        pytest.skip("this host has no name of its own")
    file = tmp_path / "a.svg"
    done = picture(file, command)
    assert (1, False) == (done.code, file.exists())
    assert done.stderr.startswith("script/picture: ")


def test_the_picture_of_the_readme() -> None:
    """It is small, loads no other file, contains no path of the host that made it, and the README shows it."""
    text = PICTURE.read_text()
    assert MAX_BYTES > len(text.encode())
    assert 1 == text.replace("https://", "http://").count("http://"), "the name space alone"
    assert [] == [path for path in ("/home/", "/root", "/tmp/") if path in shown(PICTURE)]
    assert "kimbox up openkim-dev" in shown(PICTURE)
    assert "docs/kimbox-up.svg" in (ROOT / "README.md").read_text()
