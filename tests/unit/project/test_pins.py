"""The lock of a box, and how `up` resolves it: with real git and real mirrors."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import pytest
import tinyimage
from refused import refused

from kimbox import paths
from kimbox.errors import ImageError, KimboxError, SpecError
from kimbox.image import obtain
from kimbox.lock.lockfile import read_lock
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, PackageImage, Repository


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(obtain, "key_of", lambda *_: "e" * 64)
    monkeypatch.setattr(pins, "choose", tinyimage.choose)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a spec, which contains a setup folder."""
    (tmp_path / "spec/setup").mkdir(parents=True)
    (tmp_path / "spec/setup/setup").write_text("#!/bin/sh\n")
    (tmp_path / "spec/setup/setup").chmod(0o755)
    return tmp_path / "spec"


@pytest.fixture
def box(folder: Path, tmp_path: Path) -> Box:
    """A box with a git repository and a folder."""
    makebox.make_repository(tmp_path / "code")
    return makebox.make_box(
        folder,
        repositories=(
            Repository("setup", str(folder / "setup"), True, "HEAD", "/opt/setup"),
            Repository("code", f"file://{tmp_path}/code", False, "main", "/opt/code"),
        ),
    )


def test_a_spec_that_is_a_symbolic_link_has_one_lock(box: Box, folder: Path) -> None:
    """The lock is that of the file. A lock beside the link is used if there is one. A linked lock stays a link."""
    box.source.touch()
    (folder / "links").mkdir()
    link, beside = folder / "links/other.yaml", folder / "links/other.lock"
    link.symlink_to("../kimbox.yaml")
    linked = Project(attrs.evolve(box, source=link))
    assert folder / "kimbox.lock" == linked.lock_path == Project(box).lock_path
    beside.symlink_to("real.lock")
    assert folder / "links/real.lock" == linked.lock_path
    beside.unlink()
    beside.touch()
    assert beside == linked.lock_path


def test_missing_packages_at_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its line and the package that was meant, and together with the faults of the repositories."""
    makebox.make_repository(tmp_path / "code")
    spec = tmp_path / "kimbox.yaml"
    spec.write_text(
        "kimbox: 1\nname: a\nimage:\n  packages:\n  - jq\n  - nginz\n  - zzz\n"
        f"repositories: {{code: {{url: 'file://{tmp_path}/code', ref: v1}}}}\n"
    )

    def choose(*_: object, **__: object) -> None:
        fields = {"packages": "nginz zzz", "similar.nginz": "nginx"}
        raise ImageError("no choice", code="package-not-found", hint="check them", fields=fields)

    monkeypatch.setattr(pins, "choose", choose)
    with refused(SpecError, "bad-spec") as caught:
        pins.relock(Project(load_box(spec)), update=[])
    problems = [(p.line, p.column, p.code, p.hint) for p in caught.value.problems]
    missing = "package-not-found"
    assert [(6, 5, missing, "did you mean nginx?"), (7, 5, missing, "check them")] == problems[:2]
    assert [(8, "ref-not-found")] == [(line, code) for line, _, code, _ in problems[2:]]
    assert 3 == caught.value.exit_code


def test_the_first_up_writes_the_lock(box: Box, folder: Path) -> None:
    """It is beside the spec, and every commit is in a mirror. The second `up` does not write it."""
    locked = pins.lock_for(Project(box))
    lock, mirrors = locked.lock, locked.mirrors
    path = folder / "kimbox.lock"
    assert path == Project(box).lock_path
    assert {"setup", "code"} == set(lock.repositories) == set(mirrors)
    assert lock == read_lock(path)
    before = path.stat()
    assert lock == pins.lock_for(Project(box)).lock
    assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)


def test_a_locked_commit_stays_and_a_folder_follows(box: Box, folder: Path, tmp_path: Path) -> None:
    """A new commit of a branch is not used. A change in a folder of the spec is."""
    first = pins.lock_for(Project(box)).lock
    makebox.commit(tmp_path / "code", {"a": "two\n"})
    (folder / "setup/setup").write_text("#!/bin/sh\necho changed\n")
    second = pins.lock_for(Project(box)).lock
    assert first.repositories["code"] == second.repositories["code"]
    assert first.repositories["setup"].commit != second.repositories["setup"].commit
    assert second == read_lock(folder / "kimbox.lock")


def test_a_disagreement_is_an_error_with_a_hint(box: Box, folder: Path) -> None:
    """The spec has another ref, or fewer repositories than the lock: the lock is not written."""
    pins.lock_for(Project(box))
    text = (folder / "kimbox.lock").read_text()
    setup, code = box.repositories
    other = attrs.evolve(box, repositories=(setup, attrs.evolve(code, ref="v2")))
    fewer = attrs.evolve(box, repositories=(setup,))
    for changed, what in {other: "asks for v2", fewer: "no longer in the spec"}.items():
        with refused(SpecError, "lock-disagrees", path=str(folder / "kimbox.lock")) as disagreeing:
            pins.lock_for(Project(changed))
        (problem,) = disagreeing.value.problems
        assert (str(folder / "kimbox.lock"), 1, 1, "lock-disagrees") == (
            problem.file, problem.line, problem.column, problem.code
        )  # fmt: skip
        assert what in problem.message
        assert "`kimbox lock` brings it up to date" in disagreeing.value.message
    assert text == (folder / "kimbox.lock").read_text()


def test_the_lock_of_a_shipped_box_is_in_the_home_of_kimbox(box: Box, folder: Path) -> None:
    """The user may not be allowed to write the folder of its spec."""
    pins.lock_for(Project(box, "tiny"))
    assert (paths.locks_dir() / "tiny.lock").is_file()
    assert not (folder / "kimbox.lock").exists()


def test_relock_updates_the_named_pins(box: Box, folder: Path, tmp_path: Path) -> None:
    """`kimbox lock`, with and without names. The result has the old and the new commit."""
    old = pins.lock_for(Project(box)).lock
    new = makebox.commit(tmp_path / "code", {"a": "two\n"})
    assert pins.Relocked(folder / "kimbox.lock", {}, [], False) == pins.relock(Project(box), update=[])
    assert {"code": (old.repositories["code"].commit, new)} == pins.relock(Project(box), update=["code"]).moved
    newer = makebox.commit(tmp_path / "code", {"a": "three\n"})
    assert {"code": (new, newer)} == pins.relock(Project(box), update=None).moved
    with refused(KimboxError, "pin-not-found", box=box.name, names="cod"):
        pins.relock(Project(box), update=["cod"])
    new_package = attrs.evolve(box, image=PackageImage("debian", "trixie", ("tool",)))
    assert {} == pins.relock(Project(new_package), update=["tool"]).moved


def test_relock_returns_whether_it_wrote_and_what_it_removed(box: Box) -> None:
    """It writes a first lock, a lock of which a repository was removed, and a lock for a changed digest of the spec."""
    first = pins.relock(Project(box), update=[])
    assert ({"code", "setup"}, [], True) == (set(first.moved), first.removed, first.is_written)
    fewer = attrs.evolve(box, repositories=box.repositories[:1])
    assert pins.Relocked(first.path, {}, ["code"], True) == pins.relock(Project(fewer), update=[])
    other = attrs.evolve(fewer, digest="0" * 64)
    assert pins.Relocked(first.path, {}, [], True) == pins.relock(Project(other), update=[])
    assert not pins.relock(Project(other), update=[]).is_written


def test_the_lock_needs_no_server_while_the_mirror_exists(box: Box, tmp_path: Path) -> None:
    """A second `up` works without the network. Without the mirror, the error names the repository."""
    lock = pins.lock_for(Project(box)).lock
    (tmp_path / "code").rename(tmp_path / "moved-code")
    assert lock == pins.lock_for(Project(box)).lock
    (tmp_path / "home/mirrors").rename(tmp_path / "moved-mirrors")
    with pytest.raises(KimboxError, match="code"):
        pins.lock_for(Project(box))
