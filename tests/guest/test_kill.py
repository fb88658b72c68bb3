"""kill -9 of kimbox at points spread over build and up: a plain `kimbox up` afterwards succeeds; nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Kimbox, is_given_back, until

from kimbox import run
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

NAME = "killed"


def builds(kimbox: Kimbox) -> list[Path]:
    """Folders of builds under way, or killed."""
    return list((kimbox.home / "images").glob(".tmp-*"))


def under_way(kimbox: Kimbox) -> list[Path]:
    """Those that were not killed before."""
    return [folder for folder in builds(kimbox) if not (folder / "killed").exists()]


def build_log(kimbox: Kimbox, words: str) -> bool:
    """Whether the log of a build under way holds these words."""
    for folder in under_way(kimbox):
        with contextlib.suppress(FileNotFoundError):  # what was killed before is just being swept away
            if words in (folder / "build.log").read_text(errors="replace"):
                return True
    return False


def disk_begun(kimbox: Kimbox) -> bool:
    """Whether a build is writing its disk."""
    return any((folder / "done/disk.raw").exists() for folder in under_way(kimbox))


def event(name: str) -> Callable[[Kimbox], bool]:
    """Whether the guest has told this."""
    return lambda kimbox: any(event.name == name for event in Machine(NAME).boot_events())


BUILDING = {
    "packages are being fetched": lambda kimbox: build_log(kimbox, "downloading packages"),
    "packages are being unpacked": lambda kimbox: build_log(kimbox, "installing essential"),
    "packages are being set up": lambda kimbox: build_log(kimbox, "installing remaining"),
    "the disk is being written": disk_begun,
}

#: Points that are seen from outside.
SEEN = {
    "QEMU is starting": lambda kimbox: Machine(NAME).running,
    "the guest boots": event("booting"),
    "the guest has told its key": event("hostkey"),
    "the guest waits for its manifest": event("waiting"),
    "the guest is provisioning": event("provisioning"),
}

#: Points too brief for that: the file at whose nth opening kimbox dies.
BRIEF = {
    "the machine's folder is being made": (f"*/.tmp-{NAME}/*", 1),
    "the delivery is being packed": ("*/deliver-*/delivery.tar", 1),
    "the delivery is being sent": ("*/deliver-*/delivery.tar", 2),
}

#: Two boxes, and where kimbox is killed on their way up.
COMING_UP = (
    (
        "the machine's folder is being made",
        "the guest boots",
        "the guest waits for its manifest",
        "the delivery is being packed",
        "the guest is provisioning",
    ),
    ("QEMU is starting", "the guest has told its key", "the delivery is being sent"),
)


def start(kimbox: Kimbox, *program: str | Path) -> Callable[[], int | None]:
    """Starts `kimbox up`, its output in up.log; returns what tells its exit code once it has ended."""
    environment = {"KIMBOX_HOME": str(kimbox.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    settings = [f"{name}={value}" for name, value in environment.items()]
    argv = ["env", "-C", kimbox.folder, *settings, sys.executable, *program, "up"]
    return run.detach(argv, log=kimbox.folder / "up.log")


def kill_when(kimbox: Kimbox, reached: Callable[[Kimbox], bool]) -> None:
    """Starts `kimbox up` and kills it, and it alone, when a point is reached."""
    poll = start(kimbox, "-m", "kimbox")

    def there() -> bool:
        said = (kimbox.folder / "up.log").read_text()
        assert poll() is None, f"kimbox up ended before the point was reached:\n{said}"
        return reached(kimbox)

    until("the point where kimbox is killed", there)
    process = [p for p in processes(str(kimbox.folder)) if "-m\0kimbox\0up" in p[1]]
    os.kill(process[0][0], signal.SIGKILL)
    until("the end of the killed kimbox", lambda: poll() is not None)


def kill_at(kimbox: Kimbox, pattern: str, count: int) -> None:
    """Lets `kimbox up` be killed by itself where it opens a file."""
    poll = start(kimbox, Path(__file__).with_name("dying.py"), pattern, str(count))
    until("the end of the killed kimbox", lambda: poll() is not None)
    assert poll() == -signal.SIGKILL, (kimbox.folder / "up.log").read_text()


def processes(word: str) -> list[tuple[int, str]]:
    """Processes of this host whose command line or folder holds a word."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                where = str((folder / "cwd").readlink())
            except OSError:
                continue
            if word in line or where == word:
                found.append((int(folder.name), line))
    return found


def nothing_is_left(kimbox: Kimbox) -> None:
    """No temporary file or folder of a build, a machine, a mirror, a lock or a delivery; no process of a build."""
    files = [*kimbox.home.rglob("*"), *kimbox.folder.rglob("*")]
    assert [p for p in files if p.name.startswith((".tmp-", "deliver-")) or p.name.endswith(".tmp")] == []
    assert [p for p in processes(str(kimbox.home)) if "mmdebstrap" in p[1] or "unshare" in p[1]] == []


@pytest.fixture
def project(kimbox: Kimbox) -> Kimbox:
    """A box with a setup folder and an image of its own."""
    setup = kimbox.folder / "setup"
    setup.mkdir()
    (setup / "setup").write_text("#!/bin/sh\ntrue\n")
    (setup / "setup").chmod(0o755)
    (setup / "ballast").write_bytes(os.urandom(6 << 20))  # so that sending it takes a while
    kimbox.spec(NAME, "image: {packages: [hello]}\nrepositories: {setup: {url: ./setup}}\n")
    return kimbox


def test_kill_at_twelve_points(project: Kimbox) -> None:
    """Four points of the build, eight of the way up; after each, the next command works and nothing is left over.

    What was killed is followed by the next, which mends what it finds and gets further before it is killed itself.
    """
    for reached in BUILDING.values():
        kill_when(project, reached)
        (left,) = builds(project)
        assert not (left / "killed").exists()
        (left / "killed").touch()
    project("build")
    nothing_is_left(project)
    for points in COMING_UP:
        for point in points:
            if point in SEEN:
                kill_when(project, SEEN[point])
            else:
                kill_at(project, *BRIEF[point])
        comes_up_again(project, points[-1])
    assert processes(f"kimbox-{NAME}") == []


def comes_up_again(project: Kimbox, name: str) -> None:
    """What kimbox left when it was killed does not stop the next; what the box took of the host is given back."""
    assert project.json("up")["state"] == "ready", name
    assert project("exec", "--", "hello").stdout == "Hello, world!\n"
    nothing_is_left(project)
    port = project.json("status")["ssh_port"]
    project("destroy", "-y")
    assert is_given_back(port, project.home)
