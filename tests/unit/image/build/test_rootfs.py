"""The call of mmdebstrap, which installs packages: its arguments, and the check of its result."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import tinyimage
from refused import refused

from kimbox import paths, run
from kimbox.errors import ImageError
from kimbox.image import namespace
from kimbox.image.build import rootfs
from kimbox.image.inputs.recipe import Recipe
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackage

NEEDS = {"tool": "Depends: base-files", "base-files": "Essential: yes", "other": "Priority: required"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe with three packages that are in the cache."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    versions = {}
    for name, field in NEEDS.items():
        data = name.encode()
        package = LockedPackage("1.0", "all", hashlib.sha256(data).hexdigest())
        file = cache.deb_of(package)
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        file.with_suffix(".control").write_text(f"Package: {name}\nVersion: 1.0\nArchitecture: all\n{field}\n")
        versions[name] = package
    return attrs.evolve(tinyimage.tiny_recipe(), locked=attrs.evolve(tinyimage.LOCKED, versions=versions))


def built(recipe: Recipe, work: Path, monkeypatch: pytest.MonkeyPatch, installed: str) -> list[str]:
    """Runs the build. Returns the command line of mmdebstrap. `installed` is the output of dpkg-query."""
    commands: list[list[str]] = []

    def stream(argv: Sequence[str | Path], **_: Any) -> None:
        commands.append([str(word) for word in argv])

    monkeypatch.setattr(namespace, "stream", stream)
    monkeypatch.setattr(namespace, "call", lambda *_: run.Completed(0, installed, ""))
    monkeypatch.setattr(run, "require", lambda *_: "")
    rootfs.build(recipe, work, on_line=lambda _: None, log=io.StringIO())
    assert 1 == len(commands)
    return commands[0]


def test_a_description_makes_no_fields(recipe: Recipe, tmp_path: Path) -> None:
    """Unicode line separators, which do not end a line for apt, stay in their field."""
    tool = recipe.locked.versions["tool"]
    text = "Package: tool\nDescription: a\u2028Depends: other\x85Essential: yes\n"
    cache.deb_of(tool).with_suffix(".control").write_text(text)
    cache.repository({"tool": tool}, "trixie", tmp_path / "repository")
    index = (tmp_path / "repository/Packages").read_text()
    assert text + "Filename: ./tool.deb\n" == index


def test_the_cache_is_the_only_source(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdebstrap gets one local source, which has only the locked packages, and installs all of them."""
    command = built(recipe, tmp_path, monkeypatch, "".join(f"{name} 1.0 all\n" for name in NEEDS))
    assert f"deb [trusted=yes] copy:{tmp_path}/repository ./" == command[-1]
    assert "--include=base-files,other,tool" in command
    assert "://" not in " ".join(command)
    index = (tmp_path / "repository/Packages").read_text()
    assert sorted(NEEDS) == [line[9:] for line in index.splitlines() if line.startswith("Package: ")]


def test_other_packages_than_those_of_the_lock_are_an_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check reads the installed packages from dpkg."""
    with refused(ImageError, "image-failed", packages="tool 1.0 all, tool 1.1 all"):
        built(recipe, tmp_path, monkeypatch, "base-files 1.0 all\nother 1.0 all\ntool 1.1 all\n")


def test_packages_that_were_not_requested_are_marked_automatic(recipe: Recipe) -> None:
    """They are dependencies: neither requested by the spec nor part of the base system."""
    assert "Package: tool\nArchitecture: amd64\nAuto-Installed: 1\n\n" == rootfs.extended_states(recipe)
    assert "" == rootfs.extended_states(attrs.evolve(recipe, packages=("tool",)))


def test_the_image_does_not_keep_the_apt_options_of_the_build() -> None:
    """mmdebstrap writes --aptopt to a file in the new system. The last build script removes this file."""
    build = (paths.provisioners_dir() / "base/build").read_text()
    assert "/etc/apt/apt.conf.d/99mmdebstrap" in build
    assert "/etc/apt/sources.list" in build
