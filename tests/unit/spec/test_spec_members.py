"""Several boxes in one spec: how each is merged, and where faults of `boxes` and `needs` are."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.project.project import Project
from kimbox.spec.load import load_box, merged_spec, place
from kimbox.spec.members import Member, read_members

SITE = """\
kimbox: 1
memory: 512MiB
boxes:
  worker:
    base: [layers/common.yaml]
    needs: [director]
    memory: 1GiB
  director: layers/director.yaml
  third: {}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec with three boxes, and the layers of two."""
    (tmp_path / "layers/setup").mkdir(parents=True)
    (tmp_path / "layers/common.yaml").write_text("kimbox: 1\ncpus: 3\n")
    director = "kimbox: 1\nname: other\ncpus: 2\nmemory: 2GiB\nrepositories: {setup: {url: ./setup}}\n"
    (tmp_path / "layers/director.yaml").write_text(director)
    (tmp_path / "kimbox.yaml").write_text(SITE)
    return tmp_path / "kimbox.yaml"


def test_each_box(spec: Path) -> None:
    """It has the name of its key, the keys of the file below its layers, and a lock of its own."""
    assert (Member("director"), Member("third"), Member("worker", ("director",))) == tuple(
        sorted(read_members(spec), key=lambda member: member.name)
    )
    boxes = {name: load_box(spec, member=name) for name in ("worker", "director", "third")}
    assert {"worker": (3, 1 << 30), "director": (2, 2 << 30), "third": (2, 512 << 20)} == {
        name: (box.cpus, box.memory_bytes) for name, box in boxes.items()
    }
    assert list(boxes) == [box.name for box in boxes.values()]
    assert str(spec.parent / "layers/setup") == boxes["director"].repositories[0].url
    assert spec.parent / "kimbox.worker.lock" == Project(boxes["worker"]).lock_path
    assert 3 == len({box.digest for box in boxes.values()})
    assert not {"boxes", "needs", "base"} & set(merged_spec(spec, member="worker"))
    assert 4 << 30 == load_box(spec, ("memory=4GiB",), "worker").memory_bytes
    mark = place(spec, "memory", member="worker")
    assert (str(spec), 7) == (mark.file, mark.line)


def test_the_order_is_that_of_the_needs(spec: Path) -> None:
    """A box comes after each that it needs."""
    names = [member.name for member in read_members(spec)]
    assert names.index("director") < names.index("worker")


def test_a_spec_with_one_box_has_no_members(spec: Path) -> None:
    """It is as before."""
    assert () == read_members(spec.parent / "layers/director.yaml")
    assert "other" == load_box(spec.parent / "layers/director.yaml").name


@pytest.mark.parametrize(
    ("boxes", "code", "place"),
    [
        ("{}", "bad-value", (3, 8)),
        ("[a]", "bad-value", (3, 8)),
        ("{a: 5}", "wrong-type", (3, 12)),
        ("{A: {}}", "bad-name", (3, 9)),
        ("{a: {needs: [b]}}", "bad-value", (3, 21)),
        ("{a: {needs: b}, b: {}}", "wrong-type", (3, 20)),
        ("{a: {needs: [b, b]}, b: {}}", "duplicate", (3, 24)),
        ("{a: {needs: [a]}}", "bad-value", (3, 20)),
        ("{a: {needs: [b]}, b: {needs: [a]}}", "bad-value", None),
    ],
)
def test_faults_of_boxes(tmp_path: Path, boxes: str, code: str, place: tuple[int, int] | None) -> None:
    """Each is one problem at its place."""
    (tmp_path / "kimbox.yaml").write_text(f"kimbox: 1\n\nboxes: {boxes}\n")
    with pytest.raises(SpecError) as caught:
        read_members(tmp_path / "kimbox.yaml")
    [problem] = caught.value.problems
    assert code == problem.code
    assert place in (None, (problem.line, problem.column))


@pytest.mark.parametrize(
    ("text", "member", "code", "line"),
    [
        ("kimbox: 1\nboxes:\n  a: {memroy: 1GiB}\n", "a", "unknown-key", 3),
        ("kimbox: 1\nboxes:\n  a: {memory: 1GB}\n", "a", "bad-size", 3),
        ("kimbox: 1\nboxes:\n  a: nowhere.yaml\n", "a", "file-not-found", 3),
        ("kimbox: 1\nboxes:\n  a: ../../x.yaml\n", "a", "outside-spec-folder", 3),
        ("kimbox: 1\nboxes:\n  a: kimbox.yaml\n", "a", "layer-cycle", 3),
        ("kimbox: 1\nboxes:\n  a: {boxes: {}}\n", "a", "bad-value", 3),
        ("kimbox: 1\nboxes:\n  a: {}\n", None, "bad-value", 1),
        ("kimbox: 1\nboxes:\n  a: {}\n", "b", "bad-value", 2),
        ("kimbox: 1\nname: a\n", "a", "bad-value", 1),
    ],
)
def test_faults_of_a_box(tmp_path: Path, text: str, member: str | None, code: str, line: int) -> None:
    """They have the place in the file with `boxes`."""
    (tmp_path / "kimbox.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_box(tmp_path / "kimbox.yaml", member=member)
    assert (code, line) in [(problem.code, problem.line) for problem in caught.value.problems]


def test_a_layer_cannot_have_boxes(tmp_path: Path) -> None:
    """Only the file that a command names has them."""
    (tmp_path / "layer.yaml").write_text("kimbox: 1\nboxes: {a: {}}\n")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: x\nbase: [layer.yaml]\n")
    with pytest.raises(SpecError, match="a layer or a box cannot have"):
        load_box(tmp_path / "kimbox.yaml")


def test_name_and_boxes(tmp_path: Path) -> None:
    """They exclude each other."""
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: x\nboxes: {a: {}}\n")
    with pytest.raises(SpecError) as caught:
        read_members(tmp_path / "kimbox.yaml")
    assert ["conflicting-settings"] == [problem.code for problem in caught.value.problems]
