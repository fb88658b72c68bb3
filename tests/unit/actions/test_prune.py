"""What prune removes, and what it never does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ownhome
import pytest
from makemachine import make_machine

from kimbox import paths
from kimbox.actions import prune
from kimbox.errors import StateError
from kimbox.files import locked
from kimbox.image.store import images, lease

home = ownhome.home  # a fixture


def make_image(key: str) -> Path:
    """An image in the store."""
    folder = paths.images_dir() / key
    folder.mkdir(parents=True)
    (folder / "disk.raw").write_bytes(b"x" * 8192)
    (folder / "image.json").write_text(json.dumps({"key": key, "format": "raw"}))
    return folder


def test_only_images_that_no_machine_was_made_from_go() -> None:
    """The image of a machine stays; another goes, and so does the log of a failed build."""
    used, spare = make_image("e" * 64), make_image("a" * 64)
    failed = paths.images_dir() / "b.failed.log"
    failed.write_text("no")
    make_machine()
    found = prune.unused()
    assert [item.path for item in found] == [spare, failed]
    assert found[0].size_bytes >= 8192
    prune.remove(found)
    assert used.is_dir()
    assert not spare.exists()
    assert not failed.exists()
    assert prune.unused() == []


def test_an_image_that_became_used_while_prune_asked_stays() -> None:
    """Which images are used is read again, under the lease that keeps machines from being made of them."""
    image, spare = make_image("e" * 64), make_image("a" * 64)
    found = prune.unused()
    make_machine()
    assert [spare] == [item.path for item in prune.remove(found)]
    assert (True, False) == (image.is_dir(), spare.exists())


def test_machines_are_not_made_while_prune_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exclusive lease is held while prune reads which images are used, up to the removal. Ports are not locked."""
    make_image("a" * 64)
    found = prune.unused()
    read = prune.used_images
    held: list[bool] = []
    monkeypatch.setattr(lease, "WAIT_S", 0)

    def note() -> set[str]:
        with pytest.raises(StateError), lease.shared("a" * 64):
            pass
        with locked(paths.machines_dir() / ".ports.lock"):
            held.append(True)
        return read()

    monkeypatch.setattr(prune, "used_images", note)
    assert found == prune.remove(found)
    assert [True] == held


def test_an_image_that_a_process_uses_stays() -> None:
    """Its machine or name may refer to it only later."""
    spare = make_image("a" * 64)
    with lease.shared(spare.name):
        assert [] == prune.remove(prune.unused())
    assert [spare] == [item.path for item in prune.remove(prune.unused())]


def test_another_prune_may_remove_files_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list of a folder's files and their sizes."""
    spare = make_image("a" * 64)
    walk = os.walk

    def walk_and_remove(path: Path) -> list[tuple[str, list[str], list[str]]]:
        listed = list(walk(path))
        (spare / "disk.raw").unlink()
        return listed

    monkeypatch.setattr(os, "walk", walk_and_remove)
    assert [spare] == [item.path for item in prune.unused()]


def test_a_removal_that_was_interrupted_is_finished() -> None:
    """An image that was taken out of the store is removed by the next prune, and is no obstacle to it."""
    spare = make_image("a" * 64)
    left = make_image(f"{images.GONE}{spare.name}")
    other = make_image(f"{images.GONE}{'b' * 64}")
    assert [spare] == [item.path for item in prune.remove(prune.unused())]
    assert (False, False, False) == (spare.exists(), left.exists(), other.exists())


def test_the_lock_of_an_image_stays_and_is_not_shown() -> None:
    """Who waits for it holds its file open. What is locked stays."""
    spare = make_image("a" * 64)
    lock = spare.with_name(f"{spare.name}.lock")
    with locked(lock):
        inode = lock.stat().st_ino
        assert [] == prune.remove(prune.unused())
    assert 1 == len(prune.remove(prune.unused()))
    assert (inode, False, []) == (lock.stat().st_ino, spare.exists(), prune.unused())


def test_nothing_goes_while_a_machine_is_damaged() -> None:
    """Which image a damaged machine needs cannot be told."""
    make_image("a" * 64)
    make_machine().record_file.write_text("{")
    with pytest.raises(StateError, match="damaged"):
        prune.unused()


def test_an_empty_home_has_nothing_to_remove() -> None:
    """Before the first image there is no store."""
    assert prune.unused() == []


def test_the_cache_of_packages_goes_only_if_asked_for(home: Path) -> None:
    """With the lists of archives; those that somebody asks just now stay."""
    deb, control = paths.packages_dir() / "aa/a.deb", paths.packages_dir() / "aa/a.control"
    idle, busy = paths.archives_dir() / "idle/state", paths.archives_dir() / "busy/state"
    for file in (deb, control, idle, busy):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * 5000)
    assert [] == prune.unused()
    found = prune.unused(packages=True)
    assert [paths.archives_dir(), paths.packages_dir()] == [item.path for item in found]
    with locked(busy.parent / "lock"):
        assert [paths.packages_dir()] == [item.path for item in prune.remove(found)]
    assert [False, False, False, True] == [file.exists() for file in (deb, control, idle, busy)]
