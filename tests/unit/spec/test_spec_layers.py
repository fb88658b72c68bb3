"""Layers: the search for their files, and the order of merging."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.spec.layers import merge
from kimbox.spec.load import load_box
from kimbox.spec.model import PackageImage, RemoteImage
from kimbox.spec.nodes import Node, Problems
from kimbox.spec.parse import parse


def node(text: str) -> Node:
    """Parses YAML into a tree."""
    return parse(text, "test", Problems())


def merged(*texts: str) -> object:
    """Merges layers. The last one has the highest priority."""
    tree = node(texts[0])
    for text in texts[1:]:
        tree = merge(tree, node(text))
    return tree.plain()


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ("{a: 1, b: 1}", "{b: 2, c: 2}", {"a": 1, "b": 2, "c": 2}),
        (
            "disk: {size: 1, names: {root: r}}",
            "disk: {names: {swap: s}}",
            {"disk": {"size": 1, "names": {"root": "r", "swap": "s"}}},
        ),
        ("disk: {volumes: {swap: 1GiB}}", "disk: {volumes: {swap: null}}", {"disk": {"volumes": {"swap": None}}}),
        ("other: [1, 2]", "other: [3]", {"other": [3]}),
        ("image: {packages: [a, b]}", "image: {packages: [b, c]}", {"image": {"packages": ["a", "b", "c"]}}),
        (
            "provision: [{name: a, script: x}, {name: b, script: y}]",
            "provision: [{name: c, script: z}, {name: a, run: boot}]",
            {
                "provision": [
                    {"name": "a", "script": "x", "run": "boot"},
                    {"name": "b", "script": "y"},
                    {"name": "c", "script": "z"},
                ]
            },
        ),
        (
            "probes: [{description: a, hint: x}]",
            "probes: [{description: a, hint: y}]",
            {"probes": [{"description": "a", "hint": "y"}]},
        ),
        (
            "forwards: [{guest: 1, host: 2}]",
            "forwards: [{guest: 1, host: 3}, {guest: 4}]",
            {"forwards": [{"guest": 1, "host": 3}, {"guest": 4}]},
        ),
        (
            "repositories: {a: {url: x, ref: v1}}",
            "repositories: {a: {ref: v2}}",
            {"repositories": {"a": {"url": "x", "ref": "v2"}}},
        ),
        ("{base: [a], x: 1}", "{y: 1}", {"x": 1, "y": 1}),
        ("image: {suite: trixie, packages: [a]}", "image: {location: x}", {"image": {"location": "x"}}),
        ("image: {location: x, digest: y}", "image: {packages: [a]}", {"image": {"packages": ["a"]}}),
        (
            "image: {distribution: debian, suite: trixie, packages: [a]}",
            "image: {distribution: ubuntu}",
            {"image": {"distribution": "ubuntu", "packages": ["a"]}},
        ),
        ("disk: {size: 1}", "disk: text", {"disk": "text"}),
        ("disk: text", "disk: {size: 1}", {"disk": {"size": 1}}),
    ],
)
def test_the_order_of_merging(below: str, above: str, expected: object) -> None:
    """Each kind of value merges as the order of merging states."""
    assert expected == merged(below, above)


def test_a_value_keeps_the_place_it_came_from() -> None:
    """After merging, each value has the place in the layer that it comes from."""
    tree = merge(parse("a: 1\nb: 2", "low", Problems()), parse("\n\nb:  3", "high", Problems()))
    places = {key: (child.mark.file, child.mark.line, child.mark.column) for key, child in tree.mapping.items()}
    assert {"a": ("low", 1, 4), "b": ("high", 3, 5)} == places


def test_layers_on_layers(tmp_path: Path) -> None:
    """Layers are merged in order, each onto its own layers, the spec last. A path is relative to the file with it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/deep.yaml").write_text("kimbox: 1\ncpus: 3\nimage: {packages: [deep, one]}\n")
    (tmp_path / "sub/one.yaml").write_text("kimbox: 1\nbase: [deep.yaml]\nmemory: 1GiB\nimage: {packages: [one]}\n")
    (tmp_path / "two.yaml").write_text("kimbox: 1\ncpus: 5\nmemory: 3GiB\nimage: {packages: [two]}\n")
    spec = tmp_path / "kimbox.yaml"
    spec.write_text("kimbox: 1\nname: a\nbase: [sub/one.yaml, two.yaml]\nmemory: 4GiB\n")
    box = load_box(spec)
    assert ["sub/deep.yaml", "sub/one.yaml", "two.yaml", "kimbox.yaml"] == [
        str(path.relative_to(tmp_path)) for path in box.layers
    ]
    assert (5, 4 << 30, PackageImage("debian", "trixie", ("deep", "one", "two"))) == (
        box.cpus,
        box.memory_bytes,
        box.image,
    )


def test_the_folder_of_the_spec_comes_before_the_shipped_boxes(tmp_path: Path) -> None:
    """_defaults/debian.yaml is the shipped file, unless the folder of the spec has one."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text("kimbox: 1\nname: a\nbase: [_defaults/debian.yaml]\n")
    assert 2 == load_box(spec).cpus
    (tmp_path / "_defaults").mkdir()
    (tmp_path / "_defaults/debian.yaml").write_text("kimbox: 1\ncpus: 7\n")
    assert 7 == load_box(spec).cpus


def test_an_upper_layer_replaces_the_image(tmp_path: Path) -> None:
    """An image of another kind in an upper layer replaces the complete image of the lower layer."""
    digest = "sha256:" + "0" * 64
    spec = tmp_path / "kimbox.yaml"
    spec.write_text(
        "kimbox: 1\nname: a\nbase: [_defaults/debian.yaml]\n"
        f'image: {{location: "https://e.org/x", digest: "{digest}"}}\n'
    )
    assert RemoteImage("https://e.org/x", digest) == load_box(spec).image


def test_a_folder_in_a_layer_is_beside_the_layer(tmp_path: Path) -> None:
    """The folder of a repository is relative to the file that names it."""
    (tmp_path / "sub/here").mkdir(parents=True)
    (tmp_path / "sub/low.yaml").write_text("kimbox: 1\nrepositories: {setup: {url: ./here}}\n")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [sub/low.yaml]\n")
    assert [str(tmp_path / "sub/here")] == [r.url for r in load_box(tmp_path / "kimbox.yaml").repositories]


def refused(spec: Path) -> list[str]:
    """Returns the problems of a spec: file name, line, column, code and message of each."""
    with pytest.raises(SpecError) as caught:
        load_box(spec)
    return [f"{Path(p.file).name}:{p.line}:{p.column} {p.code}: {p.message}" for p in caught.value.problems]


def test_a_circle_of_layers(tmp_path: Path) -> None:
    """Layers that include each other are refused. The place is the entry that completes the cycle."""
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("kimbox: 1\nbase: [kimbox.yaml]\n")
    assert ["b.yaml:2:8 layer-cycle: the layer `kimbox.yaml` includes itself"] == refused(tmp_path / "kimbox.yaml")


def test_too_many_layers(tmp_path: Path) -> None:
    """Too many nested layers, and layers whose number doubles at every level, are refused quickly."""
    for level in range(20):
        (tmp_path / f"{level}.yaml").write_text(f"kimbox: 1\nname: a\nbase: [{level + 1}.yaml, {level + 1}.yaml]\n")
    (tmp_path / "20.yaml").write_text("kimbox: 1\n")
    problems = refused(tmp_path / "0.yaml")
    assert "8.yaml:3:8 too-complex: layers are nested more than 8 levels deep" in problems
    (tmp_path / "5.yaml").write_text("kimbox: 1\n")
    (tmp_path / "0.yaml").write_text("kimbox: 1\nname: a\nbase: [1.yaml, 1.yaml, 1.yaml, 1.yaml]\n")
    assert any(line.endswith(" too-complex: a spec has at most 64 layers") for line in refused(tmp_path / "0.yaml"))


def test_a_symbolic_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A symbolic link that leaves the folder of the spec cannot be a layer or the folder of a repository."""
    folder = tmp_path / "box"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/low.yaml").write_text("kimbox: 1\n")
    (folder / "link").symlink_to("../out")
    (folder / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [link/low.yaml]\nrepositories: {x: {url: ./link}}\n")
    assert [
        "kimbox.yaml:3:8 outside-spec-folder: `link/low.yaml` is outside of the folder of the spec",
        "kimbox.yaml:4:25 outside-spec-folder: `./link` is outside of the folder of the spec",
    ] == refused(folder / "kimbox.yaml")
