"""`mounts` of a spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, Mount


def load(folder: Path, text: str) -> Box:
    """Loads a spec with these keys."""
    folder.mkdir(exist_ok=True)
    spec = folder / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: x\nimage: {{packages: []}}\n{text}\n")
    return load_box(spec)


def test_values(tmp_path: Path) -> None:
    """A relative location starts at the folder of its file. A folder is read-only unless the spec says otherwise."""
    assert () == load(tmp_path, "").mounts
    text = "mounts: [{location: ., mount_point: /work, writable: true}, {location: /srv/data, mount_point: /data}]"
    assert (Mount(tmp_path, "/work", True), Mount(Path("/srv/data"), "/data")) == load(tmp_path, text).mounts


def test_a_layer_is_merged_by_mount_point(tmp_path: Path) -> None:
    """The location of a layer starts at the folder of the layer."""
    base = tmp_path / "base.yaml"
    base.write_text("kimbox: 1\nmounts: [{location: src, mount_point: /work}, {location: a, mount_point: /a}]\n")
    text = "base: [base.yaml]\nmounts: [{location: b, mount_point: /a, writable: true}]"
    mounts = load(tmp_path, text).mounts
    assert [(m.location.name, m.mount_point, m.writable) for m in mounts] == [
        ("src", "/work", False),
        ("b", "/a", True),
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mounts: [{location: .}]", "missing-key"),
        ("mounts: [{location: ., mount_point: work}]", "bad-path"),
        ("mounts: [{location: ., mount_point: /tmp/work}]", "bad-path"),
        ("mounts: [{location: ., mount_point: /home/vagrant}]", "bad-path"),
        ("mounts: [{location: ~/work, mount_point: /work}]", "bad-path"),
        ("mounts: [{location: a, mount_point: /work}, {location: b, mount_point: /work/b}]", "paths-overlap"),
        ("mounts: [{location: a, mount_point: /staging}]\nscratch: {size: 1GiB}", "paths-overlap"),
        ("mounts: [{location: a, mount_point: /work}]\nwarm: true", "conflicting-settings"),
        ("mounts: [{location: a, mount_point: /work}]\nsecure: {site: x}", "conflicting-settings"),
    ],
)
def test_faults(tmp_path: Path, text: str, code: str) -> None:
    """Each fault has its code."""
    with pytest.raises(SpecError) as raised:
        load(tmp_path, text)
    assert code in {problem.code for problem in raised.value.problems}
