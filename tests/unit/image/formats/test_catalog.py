"""Vagrant's catalog: versions are added, and other files and published packages are not overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refused import refused

from kimbox.errors import KimboxError, StateError
from kimbox.image.formats import catalog


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A catalog with a package of version 1 for libvirt."""
    path = tmp_path / "x.metadata.json"
    catalog.add(path, "x", "a box", "1", "https://h/boxes/", {"libvirt": ("1/x.box", "a" * 64)})
    return path


def test_a_version_is_added(file: Path) -> None:
    """A second provider of the same version is added to its entry, a second version to the catalog."""
    catalog.add(file, "x", "a box", "1", "https://h/boxes", {"virtualbox": ("1/v.box", "b" * 64)})
    catalog.add(file, "x", "a box", "2", "https://h/boxes", {"libvirt": ("2/x.box", "c" * 64)})
    versions = json.loads(file.read_text())["versions"]
    assert [("1", ["libvirt", "virtualbox"]), ("2", ["libvirt"])] == [
        (entry["version"], [package["name"] for package in entry["providers"]]) for entry in versions
    ]
    assert "https://h/boxes/1/x.box" == versions[0]["providers"][0]["url"]


def test_a_published_package_is_kept(file: Path) -> None:
    """A second package of a version for the same provider is refused, and the file does not change."""
    before = file.read_bytes()
    with refused(StateError, "version-exists", path=str(file), version="1", provider="libvirt"):
        catalog.add(file, "x", "a box", "1", "https://h", {"libvirt": ("1/y.box", "b" * 64)})
    with refused(StateError, "version-exists"):
        catalog.check(file, "x", "1", ["virtualbox", "libvirt"])
    catalog.check(file, "x", "1", ["virtualbox"])
    assert before == file.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"name": "y", "versions": []},
        {"name": "x", "versions": {}},
        {"name": "x", "versions": ["1"]},
        {"name": "x", "versions": [{"version": 1, "providers": []}]},
        {"name": "x", "versions": [{"version": "1", "providers": ["libvirt"]}]},
    ],
)
def test_another_file_is_not_overwritten(tmp_path: Path, content: object) -> None:
    """A catalog of another box, and a JSON file that is not a catalog."""
    path = tmp_path / "x.metadata.json"
    path.write_text(json.dumps(content))
    with refused(KimboxError, "bad-catalog", path=str(path)):
        catalog.check(path, "x", "1", ["libvirt"])
