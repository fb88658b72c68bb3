"""Properties of all specs: the result is a Box or a SpecError, never another exception, and merging has its laws."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimbox.errors import SpecError
from kimbox.spec import layout
from kimbox.spec.layers import merge
from kimbox.spec.load import load_box
from kimbox.spec.model import Box
from kimbox.spec.nodes import Mark, Problems, from_plain
from kimbox.spec.parse import parse
from kimbox.spec.schema import box_schema, with_defaults

#: Every run has the same examples. All tests of this file last a few seconds.
quick = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

VALID: dict[str, Any] = {
    "kimbox": 1,
    "name": "box",
    "description": "a box",
    "base": ["_defaults/debian.yaml"],
    "image": {"distribution": "debian", "suite": "bookworm", "packages": ["gcc", "g++"], "mirror": None},
    "disk": {"size": "13GiB", "volume_group": "vg", "volumes": {"root": "4GiB", "swap": None}, "names": {"root": "r"}},
    "boot": "resnap",
    "cpus": 2,
    "memory": "1GiB",
    "scratch": {"size": "4GiB", "mount": "/mnt/scratch"},
    "forwards": [{"guest": 80, "host": "auto"}, {"guest": 81, "host": 8081}],
    "repositories": {"setup": {"url": "https://git.example.org/s.git", "ref": "main", "path": "/opt/s"}},
    "provision": [{"name": "one", "mode": "user", "run": "boot", "script": "true", "timeout": "5m"}],
    "probes": [{"description": "works", "script": "true", "hint": None, "timeout": "9s"}],
}

#: Pieces of YAML, and values that often cause errors in programs.
TOKENS = [
    ": ", "- ", "[", "]", "{", "}", "&a ", "*a ", "!x ", "<<: ", "'", '"', "|", ">", "#", "%YAML 1.1\n", "---\n",
    "...\n", "\t", "\n", "\n  ", "? ", "@", "`", '"\\U0011FFFF"', '"\\ud800"', "0o9", "1e999", ".inf", "null", "~", "é",
    "\u2028", "\0", "\x1b", "5GB", "-1", "9" * 30, "true", ",", "../", "/", "\r", "\ufeff",
]  # fmt: skip

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12),
    st.sampled_from(["5GiB", "0GiB", "5GB", "100%ORIGIN", "auto", "setup", "-x", "/proc/x", "..", "https://u:p@h/"]),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def load(text: str) -> Box | SpecError:
    """Returns the box of a text, or its SpecError. Every other exception is a bug."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kimbox.yaml"
        spec.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            return load_box(spec)
        except SpecError as error:
            outcome = error
    lines = text.count("\n") + text.count("\r") + 2
    assert outcome.problems
    for problem in outcome.problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message
        assert problem.file != str(spec) or problem.line <= lines
        assert problem.message.isprintable()
        assert (problem.hint or "").isprintable()
    return outcome


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns every container of a tree with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@quick
@given(st.data())
def test_structural_mutations_give_a_box_or_a_spec_error(data: st.DataObject) -> None:
    """Values that are replaced, removed or added at any place of a valid spec raise no other exception."""
    spec = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(spec)))
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "remove":
            del container[key]
        elif kind == "replace" or isinstance(container, list):
            container[key] = data.draw(trees)
        else:
            container[data.draw(st.sampled_from([*box_schema()["properties"], "nmae", "x" * 90]))] = data.draw(trees)
        if not places(spec):
            break
    outcome = load(json.dumps(spec))
    if isinstance(outcome, Box):
        layout.plan(outcome.disk)
        jsonschema.Draft202012Validator(box_schema()).validate(spec)


@quick
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(TOKENS), st.integers(0, 20)), min_size=1, max_size=5))
def test_textual_mutations_give_a_box_or_a_spec_error(edits: list[tuple[float, str, int]]) -> None:
    """Pieces that replace others at any place in the text of a valid spec raise no other exception."""
    text = SPEC_TEXT
    for where, token, length in edits:
        at = int(where * len(text))
        text = text[:at] + token + text[at + length :]
    load(text)


SPEC_TEXT = """\
kimbox: 1
name: box            # a comment
base: [_defaults/debian.yaml]
image: {packages: [gcc, &p make]}
disk: {size: 13GiB, volumes: {root: 4GiB}}
forwards: [{guest: 80, host: auto}]
repositories:
  setup: {url: "https://git.example.org/s.git", ref: main}
provision:
  - name: one
    script: |
      set -eu
      true
"""


def test_the_specs_to_mutate_are_valid() -> None:
    """The specs before the mutations are valid."""
    assert isinstance(load(json.dumps(VALID)), Box)
    assert isinstance(load(SPEC_TEXT), Box)


@quick
@given(st.text(max_size=60))
def test_any_text_is_a_spec_error(text: str) -> None:
    """Random text is a SpecError and raises no other exception."""
    assert isinstance(load(text), SpecError)


@quick
@given(trees)
def test_json_is_read_back(value: Any) -> None:
    """Data that is written as JSON, which is YAML, is read back unchanged."""
    text = json.dumps({"value": value})
    problems = Problems()
    read = parse(text, "test", problems).plain()
    if not problems.collected:
        assert {"value": value} == read


@quick
@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_laws_of_merging(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    """An empty layer changes nothing, a tree merged with itself is unchanged, and the upper layer has priority."""
    low, high, nothing = (from_plain(value, Mark("x")) for value in (lower, upper, {}))
    assert lower == merge(low, nothing).plain() == merge(nothing, low).plain() == merge(low, low).plain()
    both = merge(low, high).plain()
    assert set(lower) | set(upper) == set(both)
    assert all(both[key] == upper[key] for key in upper if not isinstance(upper[key], dict))
    assert all(both[key] == lower[key] for key in lower if key not in upper)
    assert both == merge(merge(low, high), high).plain()


@quick
@given(trees, trees, trees)
def test_merging_mappings_is_associative(lower: Any, upper: Any, top: Any) -> None:
    """Merging is associative."""
    a, b, c = (from_plain({"disk": {"x": value}}, Mark("x")) for value in (lower, upper, top))
    left, right = merge(merge(a, b), c).plain(), merge(a, merge(b, c)).plain()
    kinds = {isinstance(value, dict) for value in (lower, upper, top)}
    assert left == right or len(kinds) == 2


@quick
@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
def test_lists_of_packages_are_merged(lower: list[str], upper: list[str]) -> None:
    """The result is the union of the lists, in the order of first appearance."""
    low, high = (from_plain({"image": {"packages": names}}, Mark("x")) for names in (lower, upper))
    assert [*dict.fromkeys(lower + upper)] == merge(low, high).plain()["image"]["packages"]


@quick
@given(st.data())
def test_a_place_points_to_the_value(data: st.DataObject) -> None:
    """The text at the place of each value starts with that value."""
    names = data.draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
    numbers = data.draw(st.lists(st.integers(0, 999), min_size=len(names), max_size=len(names)))
    space = data.draw(st.sampled_from([" ", "   ", "\n     "]))
    text = "# first\n" + "".join(f"{name}:{space}{number}  # x\n" for name, number in zip(names, numbers, strict=True))
    tree = parse(text, "x", Problems())
    lines = text.splitlines()
    for name, number in zip(names, numbers, strict=True):
        value, key = tree.mapping[name].mark, tree.keys[name]
        assert lines[value.line - 1][value.column - 1 :].startswith(str(number))
        assert lines[key.line - 1][key.column - 1 :].startswith(f"{name}:")


@quick
@given(trees)
def test_defaults_are_stable(value: Any) -> None:
    """Defaults that are added twice are the same as once, and they replace no value of a spec."""
    tree = from_plain({"kimbox": 1, "cpus": value, "provision": [{"name": "a"}]}, Mark("x"))
    once = with_defaults(tree)
    assert value == once.plain()["cpus"]
    assert once.plain() == with_defaults(once).plain()
    assert "30m" == once.plain()["provision"][0]["timeout"]
