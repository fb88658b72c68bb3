"""The folders of the image store: how an image gets in, is found, and is removed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import ownhome
import pytest

from kimbox import paths
from kimbox.errors import ImageError, StateError
from kimbox.files import locked
from kimbox.image.store import images, lease

home = ownhome.home  # a fixture

KEY = "a" * 64


def fill(work: Path) -> dict[str, Any]:
    """The content of an image."""
    (work / images.DONE / images.DISKS["raw"]).write_bytes(b"disk")
    return {"format": "raw", "virtual_bytes": 4}


def folders() -> list[str]:
    """Names of all folders in the store."""
    return sorted(p.name for p in paths.images_dir().iterdir() if p.is_dir())


def test_an_image_is_made_once() -> None:
    """The second call finds the image of the first; nothing but the image stays."""
    made = images.publish(KEY, fill)
    assert (KEY, b"disk", 4) == (made.key, made.disk.read_bytes(), made.virtual_bytes)
    assert made == images.publish(KEY, lambda _: pytest.fail("made a second time")) == images.find(KEY)
    assert [KEY] == folders() == images.stored()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_an_error_leaves_no_folder(error: BaseException) -> None:
    """And the next attempt makes the image."""

    def fail(work: Path) -> dict[str, Any]:
        fill(work)
        raise error

    with pytest.raises(type(error)):
        images.publish(KEY, fail)
    assert ([], None) == (folders(), images.find(KEY))
    assert KEY == images.publish(KEY, fill).key


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_named(number: int) -> None:
    """With the store's folder and a hint."""

    def fail(work: Path) -> dict[str, Any]:
        raise OSError(number, "x")

    with pytest.raises(ImageError) as caught:
        images.publish(KEY, fail)
    assert (str(paths.images_dir()) in caught.value.message, images.ROOM_HINT) == (True, caught.value.hint)


def test_one_process_at_a_time_has_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is empty and private, whatever an earlier process left in it."""
    left = paths.images_dir() / f"{images.TEMPORARY}x" / "left"
    left.mkdir(parents=True)
    monkeypatch.setattr(images, "BUILD_WAIT_S", 0.0)
    with images.workspace("x", busy="no") as work:
        assert (left.parent, [], 0o700) == (work, list(work.iterdir()), work.stat().st_mode & 0o777)
        with pytest.raises(StateError, match="no"), images.workspace("x", busy="no"):
            pass
        images.sweep()
        assert work.is_dir()
    assert [] == folders()


def test_sweep_removes_what_killed_processes_left() -> None:
    """Workspaces that no process has locked, and removed images; a locked one and the images stay."""
    images.publish(KEY, fill)
    for name in ("b" * 64, "c" * 64, f"gone-{'d' * 64}"):
        (paths.images_dir() / f"{images.TEMPORARY}{name}" / images.DONE).mkdir(parents=True)
    with locked(paths.images_dir() / f"{'b' * 64}.lock"):
        images.sweep()
        assert sorted([f"{images.TEMPORARY}{'b' * 64}", KEY]) == folders()
    assert [] == list(paths.images_dir().glob("gone-*"))


def test_an_image_is_removed_only_if_nothing_needs_it() -> None:
    """Neither a process that uses or makes it, nor what the caller finds while no process can begin to."""
    images.publish(KEY, fill)
    asked: list[bool] = []

    def is_unused() -> bool:
        with pytest.raises(StateError), lease.exclusive(KEY):
            pass
        asked.append(True)
        return len(asked) > 1

    with lease.shared(KEY):
        assert not images.remove(KEY, is_unused=is_unused)
    with locked(paths.images_dir() / f"{KEY}.lock"):
        assert not images.remove(KEY, is_unused=is_unused)
    assert ([], [KEY]) == (asked, folders())
    assert not images.remove(KEY, is_unused=is_unused)
    assert [KEY] == folders()
    assert images.remove(KEY, is_unused=is_unused)
    assert [] == folders()
    assert not images.remove(KEY, is_unused=is_unused)
    assert 2 == len(asked)
