"""The lock of a box, and how `up` comes to it: with real git and real mirrors."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import pytest
import tinyimage

from kimbox import paths
from kimbox.errors import KimboxError, SpecError
from kimbox.image import obtain
from kimbox.lock.lockfile import read_lock
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.spec.model import Box, Repository


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(obtain, "key_of", lambda *_: "e" * 64)
    monkeypatch.setattr(pins, "choose", tinyimage.choose)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a spec, with a setup folder beside it."""
    (tmp_path / "spec/setup").mkdir(parents=True)
    (tmp_path / "spec/setup/setup").write_text("#!/bin/sh\n")
    return tmp_path / "spec"


@pytest.fixture
def box(folder: Path, tmp_path: Path) -> Box:
    """One repository of git, one folder."""
    makebox.make_repository(tmp_path / "code")
    return makebox.make_box(
        folder,
        repositories=(
            Repository("setup", str(folder / "setup"), True, "HEAD", "/opt/setup"),
            Repository("code", f"file://{tmp_path}/code", False, "main", "/opt/code"),
        ),
    )


def test_the_first_up_makes_the_lock(box: Box, folder: Path) -> None:
    """Beside the spec, with every commit in a mirror; the second leaves it as it is."""
    found = pins.lock_for(Project(box))
    lock, mirrors = found.lock, found.mirrors
    path = folder / "kimbox.lock"
    assert path == Project(box).lock_path
    assert {"setup", "code"} == set(lock.repositories) == set(mirrors)
    assert lock == read_lock(path)
    before = path.stat()
    assert lock == pins.lock_for(Project(box)).lock
    assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)


def test_a_locked_commit_stays_and_a_folder_follows(box: Box, folder: Path, tmp_path: Path) -> None:
    """What the world moved on to is not taken; what the user changed beside the spec is."""
    first = pins.lock_for(Project(box)).lock
    makebox.commit(tmp_path / "code", {"a": "two\n"})
    (folder / "setup/setup").write_text("#!/bin/sh\necho changed\n")
    second = pins.lock_for(Project(box)).lock
    assert first.repositories["code"] == second.repositories["code"]
    assert first.repositories["setup"].commit != second.repositories["setup"].commit
    assert second == read_lock(folder / "kimbox.lock")


def test_a_disagreement_is_an_error_with_a_way_out(box: Box, folder: Path) -> None:
    """The spec asks for another ref, or for a repository that is not locked: nothing is guessed or written."""
    pins.lock_for(Project(box))
    text = (folder / "kimbox.lock").read_text()
    setup, code = box.repositories
    other = attrs.evolve(box, repositories=(setup, attrs.evolve(code, ref="v2")))
    fewer = attrs.evolve(box, repositories=(setup,))
    for changed, what in {other: "asks for v2", fewer: "no longer in the spec"}.items():
        with pytest.raises(SpecError, match=f"kimbox\\.lock:1:1: it does not fit .*{what}") as wrong:
            pins.lock_for(Project(changed))
        assert "`kimbox lock` brings it up to date" in wrong.value.message
    assert text == (folder / "kimbox.lock").read_text()


def test_a_shipped_box_has_its_lock_at_home(box: Box, folder: Path) -> None:
    """Its folder may be the system's, where the user may not write."""
    pins.lock_for(Project(box, "tiny"))
    assert (paths.locks_dir() / "tiny.lock").is_file()
    assert not (folder / "kimbox.lock").exists()


def test_relock_moves_what_it_is_told_to(box: Box, folder: Path, tmp_path: Path) -> None:
    """`kimbox lock`, with and without names; it tells old and new."""
    old = pins.lock_for(Project(box)).lock
    new = makebox.commit(tmp_path / "code", {"a": "two\n"})
    assert pins.Relocked(folder / "kimbox.lock", {}, [], False) == pins.relock(Project(box), update=[])
    assert {"code": (old.repositories["code"].commit, new)} == pins.relock(Project(box), update=["code"]).moved
    newer = makebox.commit(tmp_path / "code", {"a": "three\n"})
    assert {"code": (new, newer)} == pins.relock(Project(box), update=None).moved
    with pytest.raises(KimboxError, match="has no repository or package cod"):
        pins.relock(Project(box), update=["cod"])


def test_relock_tells_whether_it_wrote_and_what_is_gone(box: Box) -> None:
    """A first lock is written; so is one for a spec without a repository that it names, or with another digest."""
    first = pins.relock(Project(box), update=[])
    assert ({"code", "setup"}, [], True) == (set(first.moved), first.removed, first.is_written)
    fewer = attrs.evolve(box, repositories=box.repositories[:1])
    assert pins.Relocked(first.path, {}, ["code"], True) == pins.relock(Project(fewer), update=[])
    other = attrs.evolve(fewer, digest="0" * 64)
    assert pins.Relocked(first.path, {}, [], True) == pins.relock(Project(other), update=[])
    assert not pins.relock(Project(other), update=[]).is_written


def test_the_lock_alone_is_enough_while_the_mirror_is_there(box: Box, tmp_path: Path) -> None:
    """Without network a second `up` goes as well; a commit that is nowhere is an error that names it."""
    lock = pins.lock_for(Project(box)).lock
    (tmp_path / "code").rename(tmp_path / "gone")
    assert lock == pins.lock_for(Project(box)).lock
    (tmp_path / "home/mirrors").rename(tmp_path / "lost")
    with pytest.raises(KimboxError, match="code"):
        pins.lock_for(Project(box))
