"""One home for every test of a run, so that an image is built once; boxes are driven through the real command line."""

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

#: No verb of a test takes longer, in seconds; a build with all packages of openkim-dev is the longest.
VERB_TIMEOUT_S = 1800.0


#: Between two looks at what is waited for, in seconds: at first, and after a while.
LOOK_S, LATER_S = 0.02, 0.25
SOON_S = 5.0

#: The same where a look is a program of its own, which takes its time from the guests. `state_of` needs none.
ASK_S = 2.0


def until(what: str, done: Callable[[], bool], *, limit_s: float = 600.0, every_s: float | None = None) -> None:
    """Looks until `done`; fails, naming what was waited for, when the time is up."""
    started = time.monotonic()
    pause = threading.Event()
    while not done():
        waited_s = time.monotonic() - started
        assert waited_s < limit_s, f"waited {limit_s:.0f} s in vain: {what}"
        pause.wait(every_s or (LOOK_S if waited_s < SOON_S else LATER_S))


#: Files of tests that take longest, in this order: begun first, they do not leave other processors idle at the end.
LONGEST = (
    "test_secure.py", "test_provisiond.py", "test_boot_modes.py", "test_resnap.py", "test_providers.py", "test_kill.py",
    "test_images.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which they should begin."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def state_of(name: str) -> str:
    """What a machine is now, as `kimbox status` tells it."""
    return str(observe.state(Machine(name)))


def is_given_back(port: int, home: Path) -> bool:
    """Whether no program of this home listens on a TCP port; a box of those who run other tests may have it by now."""
    holders = re.findall(r"pid=(\d+)", run.run(["ss", "-Hltnp", f"sport = :{port}"]).stdout)
    for pid in holders:
        with contextlib.suppress(OSError):
            process = Path("/proc", pid)
            if str(home) in str((process / "cwd").readlink()) + os.fsdecode((process / "cmdline").read_bytes()):
                return False
    return True


@attrs.frozen
class Kimbox:
    """The program `kimbox`, in a folder, with a home of its own."""

    home: Path
    folder: Path

    def __call__(self, *words: str | Path, check: bool = True, input: str | None = None) -> run.Completed:
        """Runs a verb. With `check`, a failure shows what kimbox said."""
        done = run.run(
            [sys.executable, "-m", "kimbox", *map(str, words)],
            check=False,
            cwd=self.folder,
            env={"KIMBOX_HOME": str(self.home), "PYTHONPATH": os.pathsep.join(sys.path)},
            input=input,
            timeout_s=VERB_TIMEOUT_S,
        )
        if check and not done.ok:
            raise AssertionError(
                f"kimbox {' '.join(map(str, words))} ended with {done.code}:\n{done.stdout}{done.stderr}"
            )
        return done

    def json(self, *words: str | Path, check: bool = True) -> dict[str, Any]:
        """Runs a verb with --json and returns its result, or its error."""
        answer = json.loads(self("--json", *words, check=check).stdout)
        return dict(answer.get("result") or answer["error"])

    def sh(self, box: str, script: str, *, check: bool = True) -> str:
        """Runs a shell script in a box and returns what it printed."""
        return self("exec", box, "--", "sh", "-c", script, check=check).stdout

    def spec(self, name: str, text: str = "") -> Path:
        """Writes the spec of a small box into this folder and returns its path."""
        path = self.folder / "kimbox.yaml"
        path.write_text(f"kimbox: 1\nname: {name}\nbase: [minimal.yaml]\n{text}")
        return path

    def machine(self, name: str) -> Machine:
        """The folder of a machine; its paths are right while KIMBOX_HOME is this home."""
        return Machine(name)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """KIMBOX_HOME of the whole run; no machine is left running at its end."""
    home = tmp_path_factory.mktemp("home", numbered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIMBOX_HOME", str(home))
        yield home
        kimbox = Kimbox(home, home)
        left = [box["name"] for box in kimbox.json("list")["boxes"]]
        for name in left:
            kimbox("destroy", "-y", name)


def exchange(home: Path) -> None:
    """Gives the images of this home to those who run other tests beside these, and takes theirs: none is built twice.

    An image is never written again, so that links do.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    mine, common = home / "images", home.parent.parent / "images"
    for source, target in ((common, mine), (mine, common)):
        target.mkdir(parents=True, exist_ok=True)
        for image in source.glob("[0-9a-f]" * 64):
            if not (target / image.name).exists():
                with tempfile.TemporaryDirectory(dir=target.parent, prefix="taken-") as taken:
                    shutil.copytree(image, Path(taken, "image"), copy_function=os.link)
                    with contextlib.suppress(OSError):  # another was quicker
                        Path(taken, "image").rename(target / image.name)


@pytest.fixture(scope="module", autouse=True)
def exchanged(home: Path) -> Iterator[None]:
    """Images are exchanged before and after the tests of a file."""
    exchange(home)
    yield
    exchange(home)


@pytest.fixture
def kimbox(home: Path, tmp_path: Path) -> Kimbox:
    """kimbox in an empty folder."""
    return Kimbox(home, tmp_path)


@pytest.fixture(scope="module")
def minimal(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """The shipped box `minimal`, brought up by the plain command; each test finds it ready."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("minimal"))
    kimbox("up", "minimal")
    exchange(home)
    yield kimbox
    kimbox("destroy", "-y", "minimal")
