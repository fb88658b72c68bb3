"""kill -9 of kimbox at many points of a build and of `up`. The next `kimbox up` succeeds, and no files remain."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from conftest import Kimbox, is_given_back, until

from kimbox import run
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

NAME = "killed"


def builds(kimbox: Kimbox) -> list[Path]:
    """Returns the folders of running and killed builds."""
    return list((kimbox.home / "images").glob(".tmp-*"))


def running_builds(kimbox: Kimbox) -> list[Path]:
    """Returns the folders of builds that were not killed."""
    return [folder for folder in builds(kimbox) if not (folder / "killed").exists()]


def build_log(kimbox: Kimbox, words: str) -> bool:
    """Whether the log of a running build contains these words."""
    for folder in running_builds(kimbox):
        with contextlib.suppress(FileNotFoundError):  # the next kimbox may remove the folder of a killed build
            if words in (folder / "build.log").read_text(errors="replace"):
                return True
    return False


def writes_disk(kimbox: Kimbox) -> bool:
    """Whether a build is writing its disk."""
    return any((folder / "done/disk.raw").exists() for folder in running_builds(kimbox))


def event(name: str) -> Callable[[Kimbox], bool]:
    """Returns a function that returns whether the guest has sent this event."""
    return lambda kimbox: any(event.name == name for event in Machine(NAME).boot_events())


BUILDING = {
    "packages are being fetched": lambda kimbox: build_log(kimbox, "downloading packages"),
    "packages are being unpacked": lambda kimbox: build_log(kimbox, "installing essential"),
    "packages are being set up": lambda kimbox: build_log(kimbox, "installing remaining"),
    "the disk is being written": writes_disk,
}

#: Points that can be detected from outside.
DETECTED = {
    "QEMU is starting": lambda kimbox: Machine(NAME).running,
    "the guest boots": event("booting"),
    "the guest has reported its key": event("hostkey"),
    "the guest is provisioning": event("provisioning"),
}

#: Points that are too short for that: pattern and number of the `open` call at which kimbox kills itself.
SHORT = {
    "the machine's folder is being made": (f"*/.tmp-{NAME}/*", 1),
    "the delivery is being packed": ("*/deliver-*/delivery.tar", 1),
    "the delivery is being described": ("*/deliver-*/delivery.tar", 2),
    "another delivery is being sent": ("*/deliver-*/delivery.tar", 2),
}

#: The points of `up` at which kimbox is killed, for each of two boxes.
STARTS = (
    (
        "the machine's folder is being made",
        "the delivery is being packed",
        "the guest boots",
        "the guest is provisioning",
    ),
    (
        "the delivery is being described",
        "QEMU is starting",
        "the guest has reported its key",
        "another delivery is being sent",
    ),
)


def start(kimbox: Kimbox, *program: str | Path) -> Callable[[], int | None]:
    """Starts `kimbox up` with its output in up.log. Returns a function that returns its exit code, or None."""
    settings = [f"{name}={value}" for name, value in kimbox.environment.items()]
    argv = ["env", "-C", kimbox.folder, *settings, sys.executable, *program, "up"]
    return run.detach(argv, log=kimbox.folder / "up.log")


def kill_when(kimbox: Kimbox, reached: Callable[[Kimbox], bool]) -> None:
    """Starts `kimbox up` and kills this process, but not its children, when a point is reached."""
    poll = start(kimbox, "-m", "kimbox")

    def is_reached() -> bool:
        log = (kimbox.folder / "up.log").read_text()
        assert poll() is None, f"kimbox up exited before the point was reached:\n{log}"
        return reached(kimbox)

    until("the point where kimbox is killed", is_reached)
    process = [p for p in processes(str(kimbox.folder)) if "-m\0kimbox\0up" in p[1]]
    os.kill(process[0][0], signal.SIGKILL)
    until("the end of the killed kimbox", lambda: poll() is not None)


def kill_at(kimbox: Kimbox, pattern: str, count: int) -> None:
    """Starts a `kimbox up` that kills itself when it opens a file."""
    poll = start(kimbox, Path(__file__).with_name("dying.py"), pattern, str(count))
    until("the end of the killed kimbox", lambda: poll() is not None)
    assert poll() == -signal.SIGKILL, (kimbox.folder / "up.log").read_text()


def processes(word: str) -> list[tuple[int, str]]:
    """Returns id and command line of processes that have a word in the command line, or as the working directory."""
    matching = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                directory = str((folder / "cwd").readlink())
            except OSError:
                continue
            if word in line or directory == word:
                matching.append((int(folder.name), line))
    return matching


def check_nothing_is_left(kimbox: Kimbox) -> None:
    """Checks that no temporary file or folder remains, also of mmdebstrap, and no process of a build."""
    files = [*kimbox.home.rglob("*"), *kimbox.folder.rglob("*")]
    assert [p for p in files if p.name.startswith((".tmp-", "deliver-")) or p.name.endswith(".tmp")] == []
    assert list(Path(kimbox.variables["TMPDIR"]).glob("mmdebstrap.*")) == []
    assert [p for p in processes(str(kimbox.home)) if "mmdebstrap" in p[1] or "unshare" in p[1]] == []


@pytest.fixture
def project(kimbox: Kimbox) -> Kimbox:
    """A spec with a setup folder and an image of its own."""
    setup = kimbox.folder / "setup"
    setup.mkdir()
    (setup / "setup").write_text("#!/bin/sh\ntrue\n")
    (setup / "setup").chmod(0o755)
    (setup / "ballast").write_bytes(os.urandom(6 << 20))  # so that the delivery lasts long enough to be interrupted
    kimbox.spec(NAME, "image: {packages: [hello]}\nrepositories: {setup: {url: ./setup}}\n")
    temporary = kimbox.folder / "temporary"
    temporary.mkdir()
    return attrs.evolve(kimbox, variables={"TMPDIR": str(temporary)})


def test_kill_at_twelve_points(project: Kimbox) -> None:
    """kimbox is killed at four points of the build and eight of `up`. Afterwards a command works, and no files remain.

    After each kill, the next kimbox repairs the state that it finds, and continues until it is killed at a later point.
    """
    for reached in BUILDING.values():
        kill_when(project, reached)
        (folder,) = builds(project)
        assert not (folder / "killed").exists()
        (folder / "killed").touch()
    project("build")
    check_nothing_is_left(project)
    for points in STARTS:
        for point in points:
            if point.startswith("another"):  # over ssh, because the box runs already
                (project.folder / "setup/ballast").write_bytes(os.urandom(6 << 20))
            if point in DETECTED:
                kill_when(project, DETECTED[point])
            else:
                kill_at(project, *SHORT[point])
        check_next_up(project, points[-1])
    assert processes(f"kimbox-{NAME}") == []


def check_next_up(project: Kimbox, name: str) -> None:
    """Checks that the next `kimbox up` succeeds, that no files remain, and that the box's port is free at its end."""
    assert project.json("up")["state"] == "ready", name
    assert project("exec", "--", "hello").stdout == "Hello, world!\n"
    check_nothing_is_left(project)
    port = project.json("status")["ssh_port"]
    project("destroy", "-y")
    assert is_given_back(port, project.home)
