"""The shape of a spec: schemas/box.schema.json, its defaults, and its errors in words at their places.

`pattern`, `propertyNames` and such are for editors. What they say is checked by kimbox.spec.build, in better words;
a test holds the two to each other.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from kimbox import files, paths
from kimbox.spec.nodes import Node, Path, Problems, from_plain, kind, shown

#: Keys longer than this get no "did you mean": comparing them costs the square of their length.
MAX_GUESSED_CHARACTERS = 40

_KINDS = {
    "object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "boolean": "true or false",
    "null": "null",
}  # fmt: skip

#: What YAML 1.1, and people, take for truth values. In YAML 1.2 they are text.
_TRUTH_WORDS = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}


@functools.cache
def box_schema() -> dict[str, Any]:
    """The JSON Schema of a box spec."""
    return files.read_json(paths.schemas_dir() / "box.schema.json")


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """A part of the schema with its `$ref` followed; what stands beside the reference wins."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].removeprefix("#/$defs/")
    return {**box_schema()["$defs"][name], **{key: value for key, value in schema.items() if key != "$ref"}}


def image_form(keys: dict[str, Any]) -> str:
    """Which of the forms of `image` its keys mean: the name of its definition in the schema."""
    if "box" in keys:
        return "box_image"
    return "remote_image" if {"location", "digest"} & keys.keys() else "package_image"


def _part_for(schema: dict[str, Any], node: Node) -> dict[str, Any]:
    """The schema that holds for a node; where there are several forms, the one that its keys mean."""
    schema = resolve(schema)
    if "if" in schema:  # the forms of image
        schema = box_schema()["$defs"][image_form(node.mapping)]
    return schema


def with_defaults(node: Node, schema: dict[str, Any] | None = None) -> Node:
    """The tree with the schema's defaults where it says nothing. They stand at the place of what they are a part of."""
    schema = _part_for(schema if schema is not None else box_schema(), node)
    if isinstance(node.value, list) and "items" in schema:
        return node.replace([with_defaults(item, schema["items"]) for item in node.value])
    if not isinstance(node.value, dict):
        return node
    known = schema.get("properties", {})
    children, keys = dict(node.value), dict(node.keys)
    for key, part in known.items():
        if key not in children:
            part = resolve(part)
            if "default" in part:
                children[key] = from_plain(part["default"], node.mark)
            elif part.get("type") == "object":
                children[key] = from_plain({}, node.mark)
            keys.setdefault(key, node.mark)
    other = schema.get("additionalProperties")
    for key, child in children.items():
        part = known.get(key, other if isinstance(other, dict) else None)
        if part is not None:
            children[key] = with_defaults(child, part)
    return node.replace(children, keys)


def end_of_text(pattern: str) -> str:
    """A pattern of a JSON Schema for Python's `re`: `$` is the end of the text, and not also before a last line end.

    ECMA 262, whose expressions JSON Schema takes, has no flag here that would make it more. No pattern of kimbox's
    schemas has a `$` that is escaped or in a class.
    """
    return pattern.replace("$", r"\Z")


def strict_validator(schema: dict[str, Any]) -> Any:
    """A validator for a schema of kimbox's own, in whose patterns `$` is the end of the text."""
    return extend(jsonschema.Draft202012Validator, validators={"pattern": _pattern})(schema)  # type: ignore[no-untyped-call]


def _pattern(_: Any, pattern: str, instance: object, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _compiled(pattern).search(instance):
        yield ValidationError(f"{shown(instance)} does not match {pattern}")


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(end_of_text(pattern))


def _nothing(*_: object) -> Iterator[ValidationError]:
    return iter(())


@functools.cache
def _validator() -> Any:
    base = jsonschema.Draft202012Validator
    checker = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    #: Left to kimbox.spec.build; uniqueItems would also take the square of a list's length.
    ours = dict.fromkeys(("pattern", "propertyNames", "uniqueItems", "format"), _nothing)
    return extend(  # type: ignore[no-untyped-call]
        base, validators=ours, type_checker=checker
    )(box_schema())


def check(root: Node, problems: Problems, *, whole: bool) -> set[int]:
    """Holds a tree against the schema; returns the ids of the nodes at fault.

    Without `whole` the tree is one file among several: what it leaves out may come from another.
    """
    faulty: set[int] = set()
    for error in _validator().iter_errors(root.plain()):
        if problems.full:
            break
        path: Path = tuple(error.absolute_path)
        if error.validator == "required" and not whole and (path or "'kimbox'" not in error.message.split(" ")[0]):
            continue
        node = root.get(*path)
        assert node is not None  # noqa: S101 - the path comes from this very tree
        faulty.update(_tell(error, path, root, node, problems))
    return faulty


def _tell(error: ValidationError, path: Path, root: Node, node: Node, problems: Problems) -> Iterator[int]:
    """Puts one error of jsonschema into words at its place; gives the ids of the nodes at fault."""
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])  # type: ignore[index]
        for key in node.mapping:
            if key not in known:
                where = f" in {where_text(path)}" if path else ""
                problems.add(node.keys[key], f"unknown key {shown(key)}{where}", guess(key, known))
                yield id(node.mapping[key])
        return
    rule: Any = error.validator_value
    if error.validator == "required":
        missing = next(key for key in rule if f"'{key}'" == error.message.split(" ")[0])
        what = f"{where_text(path)} has no {shown(missing)}" if path else f"the key {shown(missing)} is missing"
        title = resolve(error.schema["properties"][missing]).get("title")  # type: ignore[index]
        problems.add(node.mark, what, f"{title[0].lower()}{title[1:]}" if title else None)
        return
    yield id(node)
    words = _WORDS.get(str(error.validator), _fallback)
    message, hint = words(error, node)
    problems.add(node.mark, f"{where_text(path)} {message}", hint)


def _fallback(error: ValidationError, node: Node) -> tuple[str, str | None]:
    return f"cannot be {kind(node.value)}", None


def _wrong_type(error: ValidationError, node: Node) -> tuple[str, str | None]:
    rule: Any = error.validator_value
    wanted = rule if isinstance(rule, list) else [rule]
    words = " or ".join(_KINDS[name] for name in wanted)
    schema: dict[str, Any] = dict(error.schema)  # type: ignore[arg-type]
    hint = schema.get("patternErrorMessage")
    if node.value is None:
        hint = "give it a value, or leave the key out"
    elif not hint and wanted == ["string"] and isinstance(node.value, bool | int | float):
        hint = "put it in quotes"
    elif isinstance(node.value, str) and wanted == ["boolean"] and (meant := _TRUTH_WORDS.get(node.value.lower())):
        hint = f"write {meant}"
    elif not hint and (examples := schema.get("examples")):
        hint = f"for example {json.dumps(examples[0], ensure_ascii=False)}"
    return f"must be {words}, not {kind(node.value)}", hint


def _not_one_of(error: ValidationError, node: Node) -> tuple[str, str | None]:
    choices: Any = error.validator_value
    rule = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    return f"must be {rule}, not {shown(node.value)}", guess(str(node.value), choices, list_all=False)


def _wrong_version(error: ValidationError, node: Node) -> tuple[str, str | None]:
    hint = "a newer kimbox may read it" if isinstance(node.value, int) and node.value > 1 else None
    return f"must be {error.validator_value}, the version of the format, not {shown(node.value)}", hint


def _out_of_range(error: ValidationError, node: Node) -> tuple[str, str | None]:
    least, most = error.schema["minimum"], error.schema["maximum"]  # type: ignore[index]
    hint = "ports below 1024 need root" if least == 1024 and isinstance(node.value, int) and node.value > 0 else None
    return f"must be from {least} to {most}, not {shown(node.value)}", hint


def _too_short(error: ValidationError, node: Node) -> tuple[str, str | None]:
    return "cannot be empty", None


_WORDS: dict[str, Callable[[ValidationError, Node], tuple[str, str | None]]] = {
    "type": _wrong_type,
    "enum": _not_one_of,
    "const": _wrong_version,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "minLength": _too_short,
}


def where_text(path: Path) -> str:
    """A path as people write it: disk.volumes.root, provision[0].script."""
    text = ""
    for step in path:
        text += (
            f"[{step}]" if isinstance(step, int) else f".{step[:MAX_GUESSED_CHARACTERS]}" if text else str(step)[:60]
        )
    return shown(text)[1:-1]


def guess(word: str, known: list[str], *, list_all: bool = True) -> str | None:
    """`did you mean ...?`, or what there is."""
    if len(word) <= MAX_GUESSED_CHARACTERS:
        plain = {name.lower().replace("_", "").replace("-", ""): name for name in known}
        close = difflib.get_close_matches(word.lower().replace("_", "").replace("-", ""), plain, n=1, cutoff=0.6)
        if close:
            return f"did you mean {plain[close[0]]}?"
    return f"there are: {', '.join(known)}" if list_all and known else None
