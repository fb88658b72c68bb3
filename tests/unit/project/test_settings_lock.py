"""The lock of a box with settings (`--set`): that of the spec does not change."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import pytest
import tinyimage
from refused import refused

from kimbox import paths
from kimbox.errors import SpecError
from kimbox.image import obtain
from kimbox.lock.lockfile import read_lock
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.spec.load import load_box

SPEC = """\
kimbox: 1
name: tiny
image: {location: ./disk.raw, digest: "sha256:%s"}
repositories:
  code: {url: "file://%s", ref: main}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec with a repository that has the branches main and other."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(obtain, "key_of", lambda *_: "e" * 64)
    monkeypatch.setattr(pins, "choose", tinyimage.choose)
    makebox.make_repository(tmp_path / "code")
    makebox.git(tmp_path / "code", "branch", "other")
    (tmp_path / "kimbox.yaml").write_text(SPEC % ("0" * 64, tmp_path / "code"))
    return tmp_path / "kimbox.yaml"


def test_a_setting_without_pins(spec: Path) -> None:
    """The lock of the spec is written as without the setting, and the box has its pins."""
    locked = pins.lock_for(Project(load_box(spec, ("memory=1GiB",))))
    text = (spec.parent / "kimbox.lock").read_text()
    assert load_box(spec).digest == read_lock(spec.parent / "kimbox.lock").spec_digest
    assert load_box(spec, ("memory=1GiB",)).digest == locked.lock.spec_digest
    assert read_lock(spec.parent / "kimbox.lock").repositories == locked.lock.repositories
    pins.lock_for(Project(load_box(spec, ("memory=2GiB",)), frozen=True))
    assert text == (spec.parent / "kimbox.lock").read_text()


def test_a_setting_with_another_pin(spec: Path, tmp_path: Path) -> None:
    """It is chosen once, and again if the lock of the spec moves. Offline it must be here."""
    plain = pins.lock_for(Project(load_box(spec))).lock
    other = makebox.git(tmp_path / "code", "rev-parse", "other")
    makebox.git(tmp_path / "code", "checkout", "-q", "other")
    newest = makebox.commit(tmp_path / "code", {"b": "two\n"})
    assert other == plain.repositories["code"].commit != newest
    project = Project(load_box(spec, ("repositories.code.ref=other",)))
    with refused(SpecError, "lock-disagrees"):
        pins.lock_for(attrs.evolve(project, offline=True))
    assert newest == pins.lock_for(project).lock.repositories["code"].commit
    makebox.commit(tmp_path / "code", {"b": "three\n"})
    assert newest == pins.lock_for(attrs.evolve(project, offline=True)).lock.repositories["code"].commit
    assert plain.repositories == read_lock(spec.parent / "kimbox.lock").repositories
    assert 1 == len(list(paths.locks_dir().glob("tiny.set-*.lock")))
