"""Settings (`--set KEY=VALUE`): what they may be, how they are merged, and where their faults are."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.spec import settings
from kimbox.spec.load import load_box, merged_spec
from kimbox.spec.nodes import Fault

SPEC = """\
kimbox: 1
name: tiny
memory: 512MiB
image: {packages: [less]}
repositories:
  setup: {url: ./setup}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A valid spec, with a folder beside it."""
    (tmp_path / "setup").mkdir()
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return tmp_path / "tiny.yaml"


def test_a_setting_is_the_last_layer(spec: Path) -> None:
    """It replaces a value, adds to a joined list, and is part of the digest and of the merged spec."""
    values = ("memory=1GiB", "image.packages=[vim]", "disk.volumes.root=6GiB", "cpus=3")
    box, plain = load_box(spec, values), load_box(spec)
    assert (1 << 30, 3, 6 << 30) == (box.memory_bytes, box.cpus, box.disk.root.size_bytes)
    assert ("less", "vim") == getattr(box.image, "packages", None)
    assert (values, ()) == (box.settings, plain.settings)
    assert box.digest != plain.digest
    assert ["less", "vim"] == merged_spec(spec, values)["image"]["packages"]


def test_a_path_in_a_setting_is_beside_the_spec(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not depend on the current folder."""
    (spec.parent / "other").mkdir()
    monkeypatch.chdir("/")
    box = load_box(spec, ("repositories.setup.url=./other",))
    assert str(spec.parent / "other") == box.repositories[0].url


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("memory=4GB", "bad-size", 8),
        ("memory=4", "wrong-type", 8),
        ("memroy=4GiB", "unknown-key", 1),
        ("disk.volumes.rot=4GiB", "unknown-key", 1),
        ("cpus=two", "wrong-type", 6),
        ("image.packages=[a b]", "bad-name", 17),
        ("image={packages: [", "bad-yaml", None),
        ("disk.volumes.root=900GiB", "disk-too-small", None),
        ("cpus=1: 2", "bad-yaml", None),
    ],
)
def test_faults_are_those_of_a_spec(spec: Path, text: str, code: str, column: int | None) -> None:
    """A wrong setting is one error, at its place in KEY=VALUE."""
    with pytest.raises(SpecError) as caught:
        load_box(spec, (text,))
    [problem] = caught.value.problems
    assert code == problem.code
    if column is not None:
        assert ("--set", 1, column) == (problem.file, problem.line, problem.column)


@pytest.mark.parametrize(
    "text",
    ["memory", "=1", ".memory=1", "memory.=1", "a b=1", "name=other", "base=[x]", "kimbox=1", "boxes.a.spec=x",
     "cpus=1\nmemory: 2GiB", "description=\x1b[31m", "description=" + "x" * 5000],
)  # fmt: skip
def test_no_setting(spec: Path, text: str) -> None:
    """It is refused on the command line, and in a record that was edited."""
    with pytest.raises(Fault):
        settings.combine((), [text])
    with pytest.raises(SpecError):
        load_box(spec, (text,))


def test_the_last_setting_of_a_key_counts() -> None:
    """New settings come after those of the record; --unset removes one, and one that is missing is an error."""
    recorded = ("memory=1GiB", "cpus=2")
    assert ("cpus=2", "memory=2GiB") == settings.combine(recorded, ["memory=3GiB", "memory=2GiB"])
    assert ("memory=1GiB",) == settings.combine(recorded, (), ["cpus"])
    with pytest.raises(Fault, match="disk"):
        settings.combine(recorded, (), ["disk"])
    with pytest.raises(Fault, match="at most 64"):
        settings.combine((), [f"env.V{number}=x" for number in range(65)])
