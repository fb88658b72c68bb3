"""The folders of the image store: how an image is added, found and removed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import ownhome
import pytest
from refused import refused

from kimbox import paths
from kimbox.errors import ImageError, StateError
from kimbox.files import locked, write_json
from kimbox.image.store import dates, images, lease

home = ownhome.home  # a fixture

KEY = "a" * 64


def fill(work: Path) -> dict[str, Any]:
    """Writes the disk of an image to a workspace and returns the facts."""
    (work / images.DONE / images.DISKS["raw"]).write_bytes(b"disk")
    return {"format": "raw", "virtual_bytes": 4}


def folders() -> list[str]:
    """Names of all folders in the store."""
    return sorted(p.name for p in paths.images_dir().iterdir() if p.is_dir())


def test_an_image_is_created_once() -> None:
    """The second call returns the image of the first. The store has no other folder."""
    image = images.publish(KEY, fill)
    assert (KEY, b"disk", 4) == (image.key, image.disk.read_bytes(), image.virtual_bytes)
    assert image == images.publish(KEY, lambda _: pytest.fail("created a second time")) == images.find(KEY)
    assert [KEY] == folders() == images.stored()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_an_error_leaves_no_folder(error: BaseException) -> None:
    """The next call creates the image."""

    def fail(work: Path) -> dict[str, Any]:
        fill(work)
        raise error

    with pytest.raises(type(error)):
        images.publish(KEY, fail)
    assert ([], None) == (folders(), images.find(KEY))
    assert KEY == images.publish(KEY, fill).key


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_has_a_code(number: int) -> None:
    """The message names the store's folder, and the hint helps."""

    def fail(work: Path) -> dict[str, Any]:
        raise OSError(number, "x")

    with refused(ImageError, "no-space", path=str(paths.images_dir())) as caught:
        images.publish(KEY, fail)
    assert (str(paths.images_dir()) in caught.value.message, images.ROOM_HINT) == (True, caught.value.hint)


def test_one_process_at_a_time_has_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is empty and private, also if an earlier process left files in it."""
    leftover = paths.images_dir() / f"{images.TEMPORARY}x" / "leftover"
    leftover.mkdir(parents=True)
    monkeypatch.setattr(images, "BUILD_WAIT_S", 0.0)
    with images.workspace("x", busy="no") as work:
        assert (leftover.parent, [], 0o700) == (work, list(work.iterdir()), work.stat().st_mode & 0o777)
        with refused(StateError, "busy") as caught, images.workspace("x", busy="no"):
            pass
        assert "no" == caught.value.message
        images.sweep()
        assert work.is_dir()
    assert [] == folders()


def test_sweep_removes_what_killed_processes_left() -> None:
    """It removes workspaces that no process has locked, and removed images. It keeps locked workspaces and images."""
    images.publish(KEY, fill)
    for name in ("b" * 64, "c" * 64, f"gone-{'d' * 64}"):
        (paths.images_dir() / f"{images.TEMPORARY}{name}" / images.DONE).mkdir(parents=True)
    with locked(paths.images_dir() / f"{'b' * 64}.lock"):
        images.sweep()
        assert sorted([f"{images.TEMPORARY}{'b' * 64}", KEY]) == folders()
    assert [] == list(paths.images_dir().glob("gone-*"))


def test_an_image_is_removed_only_if_nothing_needs_it() -> None:
    """It is kept while a process uses or creates it, and if the caller's check finds a use of it.

    During this check no other process can start to use the image.
    """
    images.publish(KEY, fill)
    checks: list[bool] = []

    def is_unused() -> bool:
        with refused(StateError, "busy", image=KEY), lease.exclusive(KEY):
            pass
        checks.append(True)
        return len(checks) > 1

    with lease.shared(KEY):
        assert not images.remove(KEY, is_unused=is_unused)
    with locked(paths.images_dir() / f"{KEY}.lock"):
        assert not images.remove(KEY, is_unused=is_unused)
    assert ([], [KEY]) == (checks, folders())
    assert not images.remove(KEY, is_unused=is_unused)
    assert [KEY] == folders()
    assert images.remove(KEY, is_unused=is_unused)
    assert [] == folders()
    assert not images.remove(KEY, is_unused=is_unused)
    assert 2 == len(checks)


def test_the_date_of_the_packages() -> None:
    """It is in the lock of a built image, in the description of an added box, and that of a base counts."""
    date, built, added = "2026-11-20T00:00:00Z", "b" * 64, "c" * 64
    for key, name, former in ((built, images.PACKAGES, None), (added, "box/kimbox.json", None), (KEY, "", built)):
        place = images.folder(key)
        (place / images.BOX_FOLDER).mkdir(parents=True)
        write_json(place / images.FACTS, {"former": former})
        if name:
            write_json(place / name, {"as_of": date})
        assert date == dates.packages_as_of(key)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"image.json": {"former": KEY}},  # a circle
        {"image.json": {"former": "../../etc"}},
        {"image.json": {"former": ["x"]}, "box/kimbox.json": {"as_of": 7}},
    ],
)
def test_an_unknown_date_of_the_packages(files: dict[str, dict[str, Any]]) -> None:
    (images.folder(KEY) / images.BOX_FOLDER).mkdir(parents=True)
    for name, content in files.items():
        write_json(images.folder(KEY) / name, content)
    assert None is dates.packages_as_of(KEY)
