"""Regular expressions of kimbox: each takes time in proportion to its text, and `$` is not where a text goes on."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import growth
import pytest

import kimbox
from kimbox import paths
from kimbox.spec.schema import end_of_text

#: Methods of an expression, by what they cost: from one place, or from every place of the text.
METHODS = {
    "match": "match", "fullmatch": "fullmatch", "search": "finditer", "finditer": "finditer", "findall": "finditer",
    "split": "finditer", "sub": "finditer", "subn": "finditer",
}  # fmt: skip

#: Expressions whose texts are so short that their work does not matter, and the characters that a text has at most.
BOUNDED = {
    "kimbox.image.disk.grubenv._LINE": 1024,  # the block of GRUB's environment
    "kimbox.machine.console.SIGNS": 400,  # LINE_CHARACTERS
}

#: Expressions that must be noticed, with what is called of them: exponential, quadratic, quadratic with little work.
KNOWN = [
    (r'\s*(?:#[^\n]*\s*)*("(?:[^"\\]|\\.)*"|[\[\]{}=,]|[^\s\[\]{}=,"#]+)', "finditer"),
    (r"(a+)+b", "match"),
    (r"<network[^>]* connections=", "finditer"),
    (r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt])?i?b?(?:ytes)?\s*", "fullmatch"),
    (r"[^\n]*\r(?!\n)", "finditer"),
    (r'"(\\.|[^"])*"', "finditer"),
]


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The source of every module of kimbox, by its name."""
    names = [info.name for info in pkgutil.walk_packages(kimbox.__path__, "kimbox.") if info.name != "kimbox.__main__"]
    files = {name: importlib.import_module(name).__file__ for name in names}
    return {name: ast.parse(Path(file).read_text()) for name, file in files.items() if file}


def patterns_in(value: Any, depth: int = 0) -> Iterator[re.Pattern[Any]]:
    """The expressions in a value of a module: itself, or what stands in its collections and records."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 4:
        inside: list[Any] = []
        if isinstance(value, dict):
            inside = list(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            inside = list(value)
        elif attrs.has(type(value)) and not isinstance(value, type):
            inside = [getattr(value, field.name) for field in attrs.fields(type(value))]
        for item in inside:
            yield from patterns_in(item, depth + 1)


@functools.cache
def calls() -> dict[tuple[str, str], set[str]]:
    """What is called of each name in each module; under "" of names in any module."""
    found: dict[tuple[str, str], set[str]] = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                owner = node.func.value
                name = getattr(owner, "id", None) or getattr(owner, "attr", "")
                for place in (module, ""):
                    found.setdefault((place, name), set()).add(METHODS[node.func.attr])
    return found


def uses(module: str, name: str) -> set[str]:
    """What is called of a constant, in its module or, if it is public, in any; everything where that cannot be told."""
    return calls().get((module if name.startswith("_") else "", name)) or set(METHODS.values())


@functools.cache
def found_patterns() -> list[tuple[str, re.Pattern[Any], set[str]]]:
    """Every expression that a module of kimbox or a schema holds: its name, itself, what is called of it."""
    found = []
    for module, tree in trees().items():
        own = {n.id for s in tree.body for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for name, value in vars(importlib.import_module(module)).items():
            for pattern in patterns_in(value) if name in own else ():
                found.append((f"{module}.{name}", pattern, uses(module, name)))
    for file in sorted(paths.schemas_dir().glob("*.json")):
        for text in dict.fromkeys(schema_patterns(json.loads(file.read_text()))):
            found.append((file.name, re.compile(end_of_text(text)), {"finditer"}))
    return found


def schema_patterns(part: Any) -> Iterator[str]:
    """Every `pattern` of a schema."""
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        part = list(part.values())
    for below in part if isinstance(part, list) else ():
        yield from schema_patterns(below)


@pytest.mark.parametrize(("pattern", "method"), KNOWN)
def test_expressions_that_explode_are_noticed(pattern: str, method: str) -> None:
    """Those that kimbox once had among them, and the classic ones."""
    assert growth.hard_text(re.compile(pattern), {method}) is not None


def test_the_work_of_every_expression_is_linear() -> None:
    """A text of a stranger that is four times as long takes no more than about four times the work."""
    found = found_patterns()
    assert {"kimbox.lock.apt.packages._LINE", "kimbox.image.formats.tarstream._DIGITS", "lock.schema.json"} <= {
        n for n, _, _ in found
    }
    hard = {
        f"{name}: {pattern.pattern!r}": text
        for name, pattern, methods in found
        if (text := growth.hard_text(pattern, methods, BOUNDED.get(name, growth.LENGTHS[-1])))
    }
    assert {} == hard


def test_every_expression_is_a_constant() -> None:
    """None is built, or called by its text, inside a function, where the test above would not see it."""
    inside = [
        f"{module}: {ast.unparse(node)}"
        for module, tree in trees().items()
        for top in tree.body
        if not isinstance(top, ast.Assign | ast.AnnAssign)
        for node in ast.walk(top)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.")
    ]
    assert [
        "kimbox.image.sanitize.secret_paths: "
        "re.compile(f\"(?:{'|'.join((f'({group})' for group in groups))})\\\\Z\".encode())",
        "kimbox.image.sanitize.secret_paths: re.escape(path).replace('\\\\*', '[^/]*')",  # both for constants
        "kimbox.image.sanitize.secret_paths: re.escape(path)",
        "kimbox.machine.console: re.compile(pattern)",  # for the constant SIGNS
        "kimbox.spec.schema: re.compile(end_of_text(pattern))",  # for the schemas
    ] == inside


def test_a_line_end_is_no_end_of_a_text() -> None:
    """`$` is the end alone in schemas' patterns, and stands in no other expression but those for lines."""
    schemas = [
        text for file in paths.schemas_dir().glob("*.json") for text in schema_patterns(json.loads(file.read_text()))
    ]
    assert [] == [text for text in schemas if not text.startswith("^") or text.find("$") != len(text) - 1]
    for text in schemas:
        assert not text.endswith(r"\$")
    assert {"kimbox.machine.console.SIGNS"} == {
        name
        for name, pattern, _ in found_patterns()
        if "$" in str(pattern.pattern).replace(r"\$", "") and not pattern.flags & re.MULTILINE
    }
