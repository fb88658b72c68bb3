"""One KIMBOX_HOME for all guest tests of a run, so that an image is built once. Tests use the real command line."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from realkimbox import PROGRAM_PAUSE_S as PROGRAM_PAUSE_S
from realkimbox import VERB_TIMEOUT_S as VERB_TIMEOUT_S
from realkimbox import Kimbox as Kimbox
from realkimbox import until as until

from kimbox import run
from kimbox.actions import observe
from kimbox.machine.folder import Machine

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
