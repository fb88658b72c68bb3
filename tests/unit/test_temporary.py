"""Temporary folders: private, removed at the end, and removed later if their process was killed."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import pytest

from kimbox import run, temporary

ROOT = Path(__file__).resolve().parents[2]

#: A process that makes a folder with a file in it, and is then killed.
KILLED = """
import os, signal
from kimbox.temporary import temporary_folder
with temporary_folder("kimbox-render-") as folder:
    (folder / "content").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A $TMPDIR of the test, which no call has swept yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._sweep.cache_clear()
    return tmp_path


def test_a_folder_is_private_and_removed(tmpdir: Path) -> None:
    """It is removed after an error, too."""
    with contextlib.suppress(ZeroDivisionError), temporary.temporary_folder("kimbox-nbd-") as folder:
        assert (tmpdir, 0o700) == (folder.parent, folder.stat().st_mode & 0o777)
        (folder / "socket").touch()
        raise ZeroDivisionError
    assert [] == list(tmpdir.iterdir())


def test_the_folder_of_a_killed_process_is_removed(tmpdir: Path) -> None:
    """The next process removes it. It leaves folders in use, links, and folders of other programs."""
    done = run.run([sys.executable, "-c", KILLED], check=False, env={"PYTHONPATH": str(ROOT), "TMPDIR": str(tmpdir)})
    assert -9 == done.code
    (left,) = tmpdir.iterdir()
    assert (left / "content").exists()
    (tmpdir / "kimbox-render-of-mine").mkdir()
    (tmpdir / "target").mkdir()
    (tmpdir / "kimbox-nbd-abcdefgh").symlink_to(tmpdir / "target")
    with temporary.temporary_folder("kimbox-sign-") as used:
        assert not left.exists()
        temporary._sweep.cache_clear()
        with temporary.temporary_folder("kimbox-sign-"):
            assert used.exists()
    assert {"kimbox-render-of-mine", "target", "kimbox-nbd-abcdefgh"} == {path.name for path in tmpdir.iterdir()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_folder_of_another_user_stays(tmpdir: Path) -> None:
    """Whoever runs kimbox as root removes nothing of the others."""
    (tmpdir / "kimbox-render-abcdefgh").mkdir()
    os.chown(tmpdir / "kimbox-render-abcdefgh", 1234, 1234)
    with temporary.temporary_folder("kimbox-sign-"):
        assert (tmpdir / "kimbox-render-abcdefgh").exists()


def test_a_folder_that_is_removed_before_it_is_locked(tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, which looks for folders of killed ones, finds it in that moment. The next folder is used."""
    make, made = tempfile.mkdtemp, []

    def mkdtemp(prefix: str) -> str:
        made.append(make(prefix=prefix))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with temporary.temporary_folder("kimbox-keys-") as folder:
        assert made[1:] == [str(folder)]
