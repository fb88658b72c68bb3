"""Every key of a spec with every kind of value is valid, or a fault at its place. There is no other exception."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clirun
import pytest
from clirun import Kimbox

from kimbox.errors import SpecError
from kimbox.lock.lockfile import read_lock
from kimbox.spec.load import load_box
from kimbox.spec.schema import box_schema, resolve

kimbox, world = clirun.kimbox, clirun.world  # fixtures

#: Values of every kind in YAML, each on one line.
VALUES = [
    "", "true", "yes", "-1", "9" * 18, "1e999", ".nan", '""', "text", '"a\\nb"', "'" + "x" * 5000 + "'", "[]", "[null]",
    "[true, 1, 1.5, text]", "[[text]]", "[{}]", "{}", "{'': {}}", "{a: {b: [c]}}", "[&a text, *a]", "*box",
]  # fmt: skip

#: Values that are invalid at every place.
FAULTY_EVERYWHERE = [
    "9" * 40, '"\\0"', '"\\ud800"', "{1: 2}", "{null: 2}", "{1.5: x}", "{true: x}", "{? [a] : b}", "{? {a: b} : c}",
    "!!binary aGk=", "!!set {a}", "!!python/name:os.system ''", "!x [a]", "!!timestamp 2024-01-31", "*nowhere",
    "{<<: {a: b}}", "!!str 1", "[a", "{a: 1, a: 2}",
]  # fmt: skip

#: Values for patterns of the schema that have no example.
EXAMPLES = ("abc", "gcc", "a.service", "512MiB", "90s")

#: Marks the value of the key in the text.
PLACE = "HERE"


def example(part: dict[str, Any]) -> Any:
    """Returns a value that the schema accepts for this part, with the required keys only."""
    part = resolve(part)
    if part.get("title") == "Name of the box":
        return "abc"
    if "const" in part:
        return part["const"]
    if "properties" in part:
        return {key: example(part["properties"][key]) for key in part.get("required", ())}
    if "examples" in part:
        return part["examples"][0]
    return part["enum"][0] if "enum" in part else [] if part.get("type") == "array" else "x"


def parts(part: dict[str, Any], around: Any = PLACE) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields specs with PLACE at each place of this part of the schema, and the schema of that place.

    `around` is the spec around the part.
    """
    part = resolve(part)
    yield around, part
    if "if" in part:
        for form in ("box_image", "remote_image", "package_image"):
            yield from parts({"$ref": f"#/$defs/{form}"}, around)
        return
    needed = {key: example(part["properties"][key]) for key in part.get("required", ())} if "properties" in part else {}
    for key, below in part.get("properties", {}).items():
        yield from parts(below, put(around, {**needed, key: PLACE}))
    if isinstance(other := part.get("additionalProperties"), dict):
        yield from parts(other, put(around, {"setup": PLACE}))
    if "items" in part:
        yield from parts(part["items"], put(around, [PLACE]))


def put(around: Any, value: Any) -> Any:
    """Returns a spec with another value at its PLACE."""
    if isinstance(around, dict):
        return {key: put(child, value) for key, child in around.items()}
    if isinstance(around, list):
        return [put(child, value) for child in around]
    return value if around == PLACE else around


SPECS = list(dict.fromkeys(json.dumps(spec) for spec, _ in parts(box_schema())))


def written(spec: str, value: str) -> str:
    """Returns the text of a spec with this value at its PLACE and the anchor `box`. Lines end after commas."""
    return spec.replace('"name": "', '"name": &box "').replace(", ", ",\n ").replace(f'"{PLACE}"', f"{value} ")


def misplaced(error: SpecError, texts: dict[str, list[str]]) -> list[str]:
    """Returns the faults whose place is not in one of these texts (lines by the name of the file)."""
    assert error.problems  # without problems, the check would succeed
    return [str(p) for p in error.problems if not is_inside(texts.get(Path(p.file).name, []), p.line, p.column)]


def misplaced_in(path: Path, texts: dict[str, list[str]], read: Callable[[Path], object] = load_box) -> list[str]:
    """Returns `misplaced` of the error that `read` raises for a file, or an empty list if the file is valid."""
    try:
        read(path)
    except SpecError as error:
        return misplaced(error, texts)
    return []


def is_inside(lines: list[str], line: int, column: int) -> bool:
    """Whether the place exists. The positions after the end of a line and of the text exist too."""
    return 1 <= line <= len(lines) and 1 <= column <= len(lines[line - 1]) + 1


@pytest.mark.parametrize("value", VALUES)
def test_every_value_of_every_key_is_valid_or_a_fault_at_its_place(tmp_path: Path, value: str) -> None:
    """For each key of the schema: a valid spec, or faults with file, line and column inside of it."""
    path = tmp_path / "kimbox.yaml"
    for spec in SPECS:
        text = written(spec, value)
        path.write_text(text, encoding="utf-8")
        assert [] == misplaced_in(path, {path.name: text.split("\n")}), text


@pytest.mark.parametrize("value", FAULTY_EVERYWHERE)
def test_values_that_are_always_invalid(tmp_path: Path, value: str) -> None:
    """Tags, keys that are not texts and broken references are refused with their place, for every eighth key."""
    path = tmp_path / "kimbox.yaml"
    for spec in SPECS[::8]:
        text = written(spec, value)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SpecError) as caught:
            load_box(path)
        assert [] == misplaced(caught.value, {path.name: text.split("\n")}), text


@pytest.mark.parametrize("value", ["null", "true", "9", "text", "[text]", "[{}]", "{a: {}}"])
def test_layers_of_different_kinds_are_merged_or_refused(tmp_path: Path, value: str) -> None:
    """For every second key: a wrong value in a layer below a valid one, and in the spec above it."""
    spec, layer = tmp_path / "kimbox.yaml", tmp_path / "low.yaml"
    below = '"base": ["low.yaml"], "name"'
    for number, text in enumerate(SPECS[1::2]):
        wrong, right = written(text, value), written(text, "[{}]" if number % 2 else "{a: {}}")
        for lower, upper in ((wrong, right), (right, wrong))[number % 2 :: 2]:
            layer.write_text(lower)
            spec.write_text(upper.replace('"name"', below, 1))
            assert [] == misplaced_in(spec, {f.name: f.read_text().split("\n") for f in (spec, layer)}), (lower, upper)


def places(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of each value of a tree of mappings."""
    yield path
    for key, below in tree.items() if isinstance(tree, dict) else ():
        yield from places(below, (*path, key))


def replaced(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """Returns a tree with another value at a path."""
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)} if path else value


LOCK = {
    "lock": 1,
    "spec": "0" * 64,
    "image": "key",
    "packages": {
        "request": "0" * 64,
        "as_of": "2024-01-31T10:00:00Z",
        "sources": ["deb https://deb.example.org/debian trixie main"],
        "versions": {"gcc": f"4:12.2.0-3 amd64 {'0' * 64}"},
    },
    "repositories": {
        "setup": {
            "url": "https://example.org/s.git",
            "ref": "main",
            "commit": "0" * 40,
            "tree": "0" * 40,
            "submodules": {"lib": {"url": "https://example.org/l.git", "commit": "0" * 40}},
        }
    },
}


@pytest.mark.parametrize("value", VALUES)
def test_every_value_of_a_lock_is_valid_or_a_fault_at_its_place(tmp_path: Path, value: str) -> None:
    """The result is a Lock, or faults with file, line and column inside of the file."""
    path = tmp_path / "kimbox.lock"
    for place in places(LOCK):
        text = written(json.dumps(replaced(LOCK, place, PLACE)), value).replace('"spec": "', '"spec": &box "')
        path.write_text(text, encoding="utf-8")
        assert [] == misplaced_in(path, {path.name: text.split("\n")}, read_lock), text


def test_a_line_end_behind_a_value_of_a_lock_is_refused(tmp_path: Path) -> None:
    """No text and no name in a lock may end with a line end, which Python's `$` would accept."""
    path = tmp_path / "kimbox.lock"
    values = [place for place in places(LOCK) if isinstance(functools.reduce(dict.get, place, LOCK), str)]  # type: ignore[arg-type]
    names = [place for place in places(LOCK) if place and place[-1] in ("setup", "gcc", "lib")]
    assert (11, 3) == (len(values), len(names))
    texts = [json.dumps(replaced(LOCK, place, functools.reduce(dict.get, place, LOCK) + "\n")) for place in values]  # type: ignore[arg-type,operator]
    texts += [json.dumps(LOCK).replace(f'"{name}"', f'"{name}\\n"') for *_, name in names]
    texts.append(json.dumps(LOCK).replace('main"]', 'main\\n"]'))
    for text in texts:
        path.write_text(text)
        with pytest.raises(SpecError, match=r"kimbox.lock:1:\d+: "):
            read_lock(path)
    path.write_text(json.dumps(LOCK))
    assert "main" == read_lock(path).repositories["setup"].ref


def test_a_line_end_behind_a_value_of_a_spec_is_refused(tmp_path: Path) -> None:
    """No text with a pattern in a spec may end with a line end."""
    path = tmp_path / "kimbox.yaml"
    with_pattern = [(spec, part) for spec, part in parts(box_schema()) if "pattern" in part]
    assert len(with_pattern) >= 20
    for spec, part in with_pattern:
        value = str(next(e for e in (*part.get("examples", ()), *EXAMPLES) if re.search(part["pattern"], str(e))))
        path.write_text(json.dumps(put(spec, value + "\n")))
        with pytest.raises(SpecError):
            load_box(path)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (
            "5:43: repositories.setup.follow must be true or false, not the text `yes` (write true)",
            "repositories:\n  setup: {\n  url: https://example.org/s.git, follow: yes}",
        ),
        (
            "4:23: secure.dns must be true or false, not the text `No` (write false)",
            "secure: {roles: {worker: {}}, \n  updates: true, dns: No}",
        ),
        (
            "3:40: secure.updates must be true or false, not the number `1` (for example true)",
            "secure: {roles: {worker: {}}, updates: 1}",
        ),
    ],
)
def test_a_truth_value_of_another_kind_is_a_fault_of_the_spec(
    kimbox: Kimbox, tmp_path: Path, expected: str, text: str
) -> None:
    """`follow`, `dns` and `updates`: the exit status is 3, and the message has file, line and column."""
    path = tmp_path / "kimbox.yaml"
    path.write_text(f"kimbox: 1\nname: tiny\n{text}\n")
    code, out, err = kimbox("validate", str(path))
    assert (3, "") == (code, out)
    assert f"{path}:{expected}" in err
