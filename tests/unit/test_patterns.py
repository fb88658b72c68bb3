"""Regular expressions of kimbox: the work grows linearly with the text, and `$` matches at the end of a text only."""

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

#: Methods of an expression, and the method with the same work: from one position, or from every position of the text.
METHODS = {
    "match": "match", "fullmatch": "fullmatch", "search": "finditer", "finditer": "finditer", "findall": "finditer",
    "split": "finditer", "sub": "finditer", "subn": "finditer",
}  # fmt: skip

#: Expressions whose texts are so short that their work does not matter, with the maximum length of a text.
BOUNDED = {
    "kimbox.image.disk.grubenv._LINE": 1024,  # the block of GRUB's environment
    "kimbox.machine.console.SIGNS": 400,  # LINE_CHARACTERS
}

#: Expressions that must be detected, with the called method: exponential, quadratic, quadratic with little work.
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
    """Returns the syntax tree of every module of kimbox, by its name."""
    names = [info.name for info in pkgutil.walk_packages(kimbox.__path__, "kimbox.") if info.name != "kimbox.__main__"]
    files = {name: importlib.import_module(name).__file__ for name in names}
    return {name: ast.parse(Path(file).read_text()) for name, file in files.items() if file}


def patterns_in(value: Any, depth: int = 0) -> Iterator[re.Pattern[Any]]:
    """Yields the expressions in a value of a module: the value, or the members of its collections and records."""
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
    """Returns the methods that are called of each name in each module. The module "" has the calls of all modules."""
    methods: dict[tuple[str, str], set[str]] = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                owner = node.func.value
                name = getattr(owner, "id", None) or getattr(owner, "attr", "")
                for place in (module, ""):
                    methods.setdefault((place, name), set()).add(METHODS[node.func.attr])
    return methods


def uses(module: str, name: str) -> set[str]:
    """Returns the methods that are called of a constant, or all methods if no call is found.

    The calls of a private constant are those in its module; a public one can be called in every module.
    """
    return calls().get((module if name.startswith("_") else "", name)) or set(METHODS.values())


@functools.cache
def all_patterns() -> list[tuple[str, re.Pattern[Any], set[str]]]:
    """Returns every expression of kimbox's modules and schemas: its name, the expression, and the called methods."""
    patterns = []
    for module, tree in trees().items():
        own = {n.id for s in tree.body for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for name, value in vars(importlib.import_module(module)).items():
            for pattern in patterns_in(value) if name in own else ():
                patterns.append((f"{module}.{name}", pattern, uses(module, name)))
    for file in sorted(paths.schemas_dir().glob("*.json")):
        for text in dict.fromkeys(schema_patterns(json.loads(file.read_text()))):
            patterns.append((file.name, re.compile(end_of_text(text)), {"finditer"}))
    return patterns


def schema_patterns(part: Any) -> Iterator[str]:
    """Yields every `pattern` of a schema."""
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        part = list(part.values())
    for below in part if isinstance(part, list) else ():
        yield from schema_patterns(below)


@pytest.mark.parametrize(("pattern", "method"), KNOWN)
def test_slow_expressions_are_detected(pattern: str, method: str) -> None:
    """Expressions of earlier versions of kimbox, and well-known ones."""
    assert growth.hard_text(re.compile(pattern), {method}) is not None


def test_the_work_of_every_expression_is_linear() -> None:
    """An untrusted text that is four times as long requires no more than about four times the work."""
    patterns = all_patterns()
    assert {"kimbox.lock.apt.packages._LINE", "kimbox.image.formats.tarheader._DIGITS", "lock.schema.json"} <= {
        n for n, _, _ in patterns
    }
    hard = {
        f"{name}: {pattern.pattern!r}": text
        for name, pattern, methods in patterns
        if (text := growth.hard_text(pattern, methods, BOUNDED.get(name, growth.LENGTHS[-1])))
    }
    assert {} == hard


def test_every_expression_is_a_constant() -> None:
    """No function compiles an expression or passes it as a text, because the test above reads constants only."""
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


def test_a_line_end_is_not_the_end_of_a_text() -> None:
    """In patterns of schemas, `$` only occurs at the end. Other expressions have it for lines only."""
    schemas = [
        text for file in paths.schemas_dir().glob("*.json") for text in schema_patterns(json.loads(file.read_text()))
    ]
    assert [] == [text for text in schemas if not text.startswith("^") or text.find("$") != len(text) - 1]
    for text in schemas:
        assert not text.endswith(r"\$")
    assert {"kimbox.machine.console.SIGNS"} == {
        name
        for name, pattern, _ in all_patterns()
        if "$" in str(pattern.pattern).replace(r"\$", "") and not pattern.flags & re.MULTILINE
    }
