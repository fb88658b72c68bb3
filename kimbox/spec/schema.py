"""The schema of a spec, schemas/box.schema.json: its defaults, and a check that reports each error at its place.

`pattern`, `propertyNames` and others in the schema are for editors. kimbox.spec.build checks the same rules with better
messages; a test makes sure that both accept the same specs.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import jsonschema
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from kimbox import files, paths
from kimbox.spec.nodes import Node, Path, Problems, describe, from_plain, shown

#: Maximum length of a key that gets a "did you mean": the comparison takes time with the square of the length.
MAX_GUESSED_CHARACTERS = 40

_TYPE_NAMES = {
    "object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "boolean": "true or false",
    "null": "null",
}  # fmt: skip

#: Truth values of YAML 1.1. In YAML 1.2 they are text.
_TRUTH_WORDS = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}


@functools.cache
def box_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a box spec."""
    return files.read_json(paths.schemas_dir() / "box.schema.json")


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a part of the schema with its `$ref` resolved. Keys beside the reference have precedence."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].removeprefix("#/$defs/")
    return {**box_schema()["$defs"][name], **{key: value for key, value in schema.items() if key != "$ref"}}


def image_form(keys: dict[str, Any]) -> str:
    """Returns the form of `image` that has these keys, as the name of its definition in the schema."""
    if "box" in keys:
        return "box_image"
    return "remote_image" if {"location", "digest"} & keys.keys() else "package_image"


def _schema_for(schema: dict[str, Any], node: Node) -> dict[str, Any]:
    """Returns the schema for a node. If the schema has several forms, the keys of the node select one."""
    schema = resolve(schema)
    if "if" in schema:  # the forms of image
        schema = box_schema()["$defs"][image_form(node.mapping)]
    return schema


def with_defaults(node: Node, schema: dict[str, Any] | None = None) -> Node:
    """Returns the tree with the defaults of the schema for missing keys. A default has the place of its parent node."""
    schema = _schema_for(schema if schema is not None else box_schema(), node)
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
    """Translates a pattern of a JSON Schema for Python's `re`, where `$` also matches before a newline at the end.

    JSON Schema uses the expressions of ECMA 262, where `$` matches only at the end. No pattern in kimbox's schemas has
    a `$` that is escaped or in a class.
    """
    return pattern.replace("$", r"\Z")


def strict_validator(schema: dict[str, Any]) -> Any:
    """Returns a validator for a schema of kimbox, in which `$` matches only at the end of a text."""
    return extend(jsonschema.Draft202012Validator, validators={"pattern": _pattern})(schema)  # type: ignore[no-untyped-call]


def _pattern(_: Any, pattern: str, instance: object, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _compiled(pattern).search(instance):
        yield ValidationError(f"{shown(instance)} does not match {pattern}")


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(end_of_text(pattern))


def _no_errors(*_: object) -> Iterator[ValidationError]:
    return iter(())


@functools.cache
def _box_validator() -> Any:
    return _validator(box_schema())


def _validator(schema: dict[str, Any]) -> Any:
    """Returns a validator that leaves out what kimbox checks itself."""
    base = jsonschema.Draft202012Validator
    checker = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    #: kimbox.spec.build checks these. uniqueItems would also take time with the square of the length of a list.
    skipped = dict.fromkeys(("pattern", "propertyNames", "uniqueItems", "format"), _no_errors)
    return extend(  # type: ignore[no-untyped-call]
        base, validators=skipped, type_checker=checker
    )(schema)


def check(root: Node, problems: Problems, *, whole: bool, schema: dict[str, Any] | None = None) -> set[int]:
    """Checks a tree against a schema, by default that of box specs.

    Adds a problem for each error; returns the ids of the nodes that have one.

    Without `whole` the tree is one file of several: its missing keys may be in another file and are not reported.
    """
    faulty: set[int] = set()
    validator = _box_validator() if schema is None else _validator(schema)
    for error in validator.iter_errors(root.plain()):
        if problems.full:
            break
        path: Path = tuple(error.absolute_path)
        if error.validator == "required" and not whole and (path or "'kimbox'" not in error.message.split(" ")[0]):
            continue
        node = root.get(*path)
        assert node is not None  # noqa: S101 - the path comes from this very tree
        faulty.update(_report(error, path, node, problems))
    return faulty


def _report(error: ValidationError, path: Path, node: Node, problems: Problems) -> Iterator[int]:
    """Adds the problem of one error of jsonschema; yields the ids of the nodes that have it."""
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])  # type: ignore[index]
        for key in node.mapping:
            if key not in known:
                where = f" in {path_text(path)}" if path else ""
                message = f"unknown key {shown(key)}{where}"
                problems.add(node.keys[key], message, guess(key, known), code="unknown-key")
                yield id(node.mapping[key])
        return
    rule: Any = error.validator_value
    if error.validator == "required":
        missing = next(key for key in rule if f"'{key}'" == error.message.split(" ")[0])
        message = f"{path_text(path)} has no {shown(missing)}" if path else f"the key {shown(missing)} is missing"
        known = dict(error.schema).get("properties", box_schema()["properties"])  # type: ignore[arg-type]
        title = resolve(known.get(missing, {})).get("title")
        hint = f"{title[0].lower()}{title[1:]}" if title else None
        problems.add(node.mark, message, hint, code="missing-key")
        return
    yield id(node)
    kind = _ERROR_KINDS.get(str(error.validator), _OTHER_ERROR)
    message, hint = kind.describe(error, node)
    problems.add(node.mark, f"{path_text(path)} {message}", hint, code=kind.code)


def _unexpected(error: ValidationError, node: Node) -> tuple[str, str | None]:
    return f"cannot be {describe(node.value)}", None


def _wrong_type(error: ValidationError, node: Node) -> tuple[str, str | None]:
    rule: Any = error.validator_value
    types = rule if isinstance(rule, list) else [rule]
    names = " or ".join(_TYPE_NAMES[name] for name in types)
    schema: dict[str, Any] = dict(error.schema)  # type: ignore[arg-type]
    hint = schema.get("patternErrorMessage")
    if node.value is None:
        hint = "give it a value, or remove the key"
    elif not hint and types == ["string"] and isinstance(node.value, bool | int | float):
        hint = f"put it in quotes: {json.dumps(node.text, ensure_ascii=False)}" if node.text else "put it in quotes"
    elif isinstance(node.value, str) and types == ["boolean"] and (value := _TRUTH_WORDS.get(node.value.lower())):
        hint = f"write {value}"
    elif not hint and (examples := schema.get("examples")):
        hint = f"for example {json.dumps(examples[0], ensure_ascii=False)}"
    found = f"the number {shown(node.text)}" if node.text and type(node.value) in (int, float) else describe(node.value)
    return f"must be {names}, not {found}", hint


def _not_a_choice(error: ValidationError, node: Node) -> tuple[str, str | None]:
    values: Any = error.validator_value
    choices = ["null" if value is None else str(value) for value in values]
    listed = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    return f"must be {listed}, not {shown(node.value)}", guess(str(node.value), choices, list_all=False)


def _wrong_version(error: ValidationError, node: Node) -> tuple[str, str | None]:
    hint = "a newer kimbox may read it" if isinstance(node.value, int) and node.value > 1 else None
    if isinstance(node.value, str):
        hint = "write it without quotes"
    kind = "the text " if isinstance(node.value, str) else ""
    return f"must be {error.validator_value}, the version of the format, not {kind}{shown(node.value)}", hint


def _out_of_range(error: ValidationError, node: Node) -> tuple[str, str | None]:
    least, most = error.schema["minimum"], error.schema["maximum"]  # type: ignore[index]
    hint = "ports below 1024 need root" if least == 1024 and isinstance(node.value, int) and node.value > 0 else None
    return f"must be from {least} to {most}, not {shown(node.value)}", hint


def _too_short(error: ValidationError, node: Node) -> tuple[str, str | None]:
    return "cannot be empty", None


@attrs.frozen
class _ErrorKind:
    """The code of a problem, and the function that returns its message and hint."""

    code: str
    describe: Callable[[ValidationError, Node], tuple[str, str | None]]


#: Keyword of the schema -> how its errors are reported.
_ERROR_KINDS = {
    "type": _ErrorKind(code="wrong-type", describe=_wrong_type),
    "enum": _ErrorKind(code="bad-value", describe=_not_a_choice),
    "const": _ErrorKind(code="unsupported-format", describe=_wrong_version),
    "minimum": _ErrorKind(code="out-of-range", describe=_out_of_range),
    "maximum": _ErrorKind(code="out-of-range", describe=_out_of_range),
    "minLength": _ErrorKind(code="empty-value", describe=_too_short),
}

#: For every other keyword.
_OTHER_ERROR = _ErrorKind(code="bad-value", describe=_unexpected)


def path_text(path: Path) -> str:
    """Returns a path as text: disk.volumes.root, provision[0].script."""
    text = ""
    for step in path:
        text += (
            f"[{step}]" if isinstance(step, int) else f".{step[:MAX_GUESSED_CHARACTERS]}" if text else str(step)[:60]
        )
    return shown(text)[1:-1]


def guess(word: str, known: list[str], *, list_all: bool = True) -> str | None:
    """Returns `did you mean ...?` for a similar name; else, if `list_all`, all known names; else None."""
    if len(word) <= MAX_GUESSED_CHARACTERS:
        by_letters = {name.lower().replace("_", "").replace("-", ""): name for name in known}
        letters = word.lower().replace("_", "").replace("-", "")
        if similar := difflib.get_close_matches(letters, by_letters, n=1, cutoff=0.6):
            return f"did you mean {by_letters[similar[0]]}?"
    return f"there are: {', '.join(known)}" if list_all and known else None
