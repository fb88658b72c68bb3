"""One KIMBOX_HOME for all guest tests of a run, so that an image is built once. Tests use the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from kimbox import run
from kimbox.actions import observe
from kimbox.machine.folder import Machine

#: Timeout of a verb, in seconds. The longest is a build with all packages of openkim-dev.
VERB_TIMEOUT_S = 1800.0


#: Pause between two checks of a wait, in seconds: within the first FAST_PHASE_S seconds, and after them.
FAST_PAUSE_S, SLOW_PAUSE_S = 0.02, 0.25
FAST_PHASE_S = 5.0

#: Pause between two checks that start a program, because the program takes CPU time from the guests. `state_of` starts
#: no program.
PROGRAM_PAUSE_S = 2.0


def until(what: str, done: Callable[[], bool], *, limit_s: float = 600.0, every_s: float | None = None) -> None:
    """Waits until `done` returns true. At the timeout, fails with the name of the condition."""
    started = time.monotonic()
    pause = threading.Event()
    while not done():
        waited_s = time.monotonic() - started
        assert waited_s < limit_s, f"timeout after {limit_s:.0f} s: {what}"
        pause.wait(every_s or (FAST_PAUSE_S if waited_s < FAST_PHASE_S else SLOW_PAUSE_S))


#: The test files that take longer than a minute and a half, slowest first. They start first, so that no row of tests
#: ends long after the other one.
LONGEST = (
    "test_secure.py", "test_provisiond.py", "test_boot_modes.py", "test_providers.py", "test_identity.py",
    "test_condor.py", "test_clones.py", "test_cloud_image.py", "test_job.py", "test_images.py", "test_box.py",
    "test_saved_box.py", "test_resnap.py", "test_kill.py", "test_maintain_commit.py", "test_kept_root.py",
    "test_several_boxes.py", "test_provisioning.py", "test_snapshot_fills.py", "test_rebuild.py", "test_scratch.py",
    "test_fresh_machine.py", "test_virtualbox.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slowest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def state_of(name: str) -> str:
    """Returns the state of a machine as `kimbox status` prints it, without starting a program."""
    return str(observe.state(Machine(name)))


def is_given_back(port: int, home: Path) -> bool:
    """Whether no program of this home listens on a TCP port. A box of a parallel test run may already use the port."""
    holders = re.findall(r"pid=(\d+)", run.run(["ss", "-Hltnp", f"sport = :{port}"]).stdout)
    for pid in holders:
        with contextlib.suppress(OSError):
            process = Path("/proc", pid)
            if str(home) in str((process / "cwd").readlink()) + os.fsdecode((process / "cmdline").read_bytes()):
                return False
    return True


@attrs.frozen
class Kimbox:
    """The program `kimbox` with a working directory and a KIMBOX_HOME."""

    home: Path
    folder: Path
    #: Words before the program, for example to start it in a namespace.
    within: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the program, for a test that starts it in another way."""
        return {"KIMBOX_HOME": str(self.home), "PYTHONPATH": os.pathsep.join(sys.path)}

    def __call__(
        self, *words: str | Path, check: bool = True, input: str | None = None, timeout_s: float = VERB_TIMEOUT_S
    ) -> run.Completed:
        """Runs a verb. With `check`, a failure raises AssertionError with the output."""
        done = run.run(
            [*self.within, sys.executable, "-m", "kimbox", *map(str, words)],
            check=False,
            cwd=self.folder,
            env=self.environment,
            input=input,
            timeout_s=timeout_s,
        )
        if check and not done.ok:
            raise AssertionError(
                f"kimbox {' '.join(map(str, words))} exited with {done.code}:\n{done.stdout}{done.stderr}"
            )
        return done

    def json(self, *words: str | Path, check: bool = True) -> dict[str, Any]:
        """Runs a verb with --json. Returns its result, or its error."""
        answer = json.loads(self("--json", *words, check=check).stdout)
        return dict(answer.get("result") or answer["error"])

    def sh(self, box: str, script: str, *, check: bool = True) -> str:
        """Runs a shell script in a box and returns its stdout."""
        return self("exec", box, "--", "sh", "-c", script, check=check).stdout

    def spec(self, name: str, text: str = "") -> Path:
        """Writes the spec of a small box into this folder and returns its path."""
        path = self.folder / "kimbox.yaml"
        path.write_text(f"kimbox: 1\nname: {name}\nbase: [minimal.yaml]\n{text}")
        return path

    def machine(self, name: str) -> Machine:
        """Returns a machine. Its paths are right while KIMBOX_HOME is this home."""
        return Machine(name)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """KIMBOX_HOME of the run. All machines are destroyed at the end."""
    home = tmp_path_factory.mktemp("home", numbered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIMBOX_HOME", str(home))
        yield home
        kimbox = Kimbox(home, home)
        remaining = [box["name"] for box in kimbox.json("list")["boxes"]]
        for name in remaining:
            kimbox("destroy", "-y", name)


def exchange(home: Path) -> None:
    """Shares the images of this home with the parallel processes of pytest, so that no image is built twice.

    The files are hard links, which is possible because an image never changes.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    own, shared = home / "images", home.parent.parent / "images"
    for source, target in ((shared, own), (own, shared)):
        target.mkdir(parents=True, exist_ok=True)
        for image in source.glob("[0-9a-f]" * 64):
            if not (target / image.name).exists():
                with tempfile.TemporaryDirectory(dir=target.parent, prefix="taken-") as temporary:
                    shutil.copytree(image, Path(temporary, "image"), copy_function=os.link)
                    with contextlib.suppress(OSError):  # another process has already made the folder
                        Path(temporary, "image").rename(target / image.name)


@pytest.fixture(scope="module", autouse=True)
def exchanged(home: Path) -> Iterator[None]:
    """Shares images before and after the tests of a file."""
    exchange(home)
    yield
    exchange(home)


@pytest.fixture
def kimbox(home: Path, tmp_path: Path) -> Kimbox:
    """kimbox in an empty working directory."""
    return Kimbox(home, tmp_path)


@pytest.fixture(scope="module")
def minimal(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """The shipped box `minimal`, started with `kimbox up minimal`. It is ready at the start of each test."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("minimal"))
    kimbox("up", "minimal")
    exchange(home)
    yield kimbox
    kimbox("destroy", "-y", "minimal")
