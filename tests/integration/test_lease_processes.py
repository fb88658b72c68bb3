"""Processes that make machines of an image, and a prune beside them; one is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import leasechild
import ownhome
import pytest
from takenimage import CONTENT, digest_of

from kimbox import paths
from kimbox.actions import prune
from kimbox.image.store import images, lease
from kimbox.machine.folder import machines
from kimbox.run import BackgroundProcess, background

home = ownhome.home  # a fixture

SUPPORT = Path(__file__).resolve().parents[1] / "support"

#: How another Python finds kimbox, what it needs, and the helpers of the tests.
PYTHONPATH = os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT), *filter(None, sys.path)])

KEY = digest_of(CONTENT).removeprefix("sha256:")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is not in the store. The programs that the processes have started are ended with the test."""
    (tmp_path / "disk.raw").write_bytes(CONTENT)
    yield tmp_path / "disk.raw"
    for program in tmp_path.glob("program-*[0-9]"):
        os.kill(int(program.read_text()), signal.SIGKILL)


@contextlib.contextmanager
def making_machine(disk: Path) -> Iterator[BackgroundProcess]:
    """A process that is making a machine, and has the image."""
    before = set(disk.parent.glob("leased-*"))
    argv = [sys.executable, SUPPORT / "leasechild.py", disk, digest_of(CONTENT), disk.parent]
    with background(["env", f"PYTHONPATH={PYTHONPATH}", f"KIMBOX_HOME={paths.home()}", *argv]) as child:
        while not set(disk.parent.glob("leased-*")) - before:
            assert child.code() is None, child.output()
        yield child


def finish(child: BackgroundProcess, folder: Path) -> None:
    """Lets the process write the machine's record."""
    (folder / "go").touch()
    assert 0 == child.wait(leasechild.BOUND_S), child.output()


def test_prune_leaves_an_image_of_which_a_machine_is_being_made(disk: Path) -> None:
    """Then the machine's record keeps it."""
    with making_machine(disk) as child:
        assert [KEY] == [item.path.name for item in prune.unused()]
        assert [] == prune.remove(prune.unused())
        finish(child, disk.parent)
    assert [KEY] == [machine.record().image for machine in machines()]
    assert [] == prune.unused()
    assert images.folder(KEY).is_dir()


def test_a_killed_process_leaves_no_lease(disk: Path) -> None:
    """Though a program that it started still runs."""
    with making_machine(disk) as child:
        [leased] = disk.parent.glob("leased-*")
        os.kill(int(leased.name.removeprefix("leased-")), signal.SIGKILL)
        assert -signal.SIGKILL == child.wait(leasechild.BOUND_S)
    [program] = disk.parent.glob("program-*[0-9]")
    os.kill(int(program.read_text()), 0)
    assert [KEY] == [item.path.name for item in prune.remove(prune.unused())]
    assert not images.folder(KEY).exists()


def test_two_processes_do_not_wait_for_each_other(disk: Path) -> None:
    """Both have the image at the same time, and neither has finished."""
    with making_machine(disk) as first, making_machine(disk) as second:
        assert (None, None) == (first.code(), second.code())
        finish(first, disk.parent)
        finish(second, disk.parent)
    assert [KEY, KEY] == [machine.record().image for machine in machines()]
    with lease.exclusive(KEY):
        pass
