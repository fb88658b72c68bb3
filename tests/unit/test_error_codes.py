"""Every error has a stable code, and the catalog lists exactly the used codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimbox.codes import CODES
from kimbox.errors import EXIT_CODES, GuestError, ImageError, Interrupted, KimboxError, Problem, SpecError, StateError

ROOT = Path(__file__).resolve().parents[2]

#: Classes whose own code is too general: each `raise` passes a code.
GENERIC = {"KimboxError", "UsageError", "SpecError", "ImageError", "GuestError", "StateError", "Problem", "Fault"}

CODE = re.compile(r"[a-z]+(-[a-z]+)*")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Yields the path below kimbox/ and the syntax tree of every module."""
    for module in sorted((ROOT / "kimbox").rglob("*.py")):
        yield module.relative_to(ROOT / "kimbox"), ast.parse(module.read_text())


def classes() -> dict[str, ast.ClassDef]:
    """Returns every class of kimbox/ by its name. No two errors have the same name."""
    return {node.name: node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def own_code(node: ast.ClassDef) -> str | None:
    """Returns the code that a class sets for all of its instances, or None."""
    for line in node.body:
        target = (
            line.target
            if isinstance(line, ast.AnnAssign)
            else line.targets[0]
            if isinstance(line, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "code" and isinstance(line.value, ast.Constant):  # type: ignore[union-attr]
            return str(line.value.value)  # type: ignore[union-attr]
    return None


def errors(known: dict[str, ast.ClassDef]) -> set[str]:
    """Returns the names of KimboxError and of all classes that are derived from it."""
    names = {"KimboxError"}
    while more := {
        name
        for name, node in known.items()
        if name not in names and any(isinstance(base, ast.Name) and base.id in names for base in node.bases)
    }:
        names |= more
    return names


def must_pass_a_code(known: dict[str, ast.ClassDef]) -> set[str]:
    """Returns the classes whose instances need a code: the generic ones, and subclasses without a code."""
    names = set(GENERIC)
    for name in errors(known) - GENERIC:
        body = {line.name: line for line in known[name].body if isinstance(line, ast.FunctionDef)}
        makes_its_own = "__init__" in body and "code" not in [a.arg for a in body["__init__"].args.kwonlyargs]
        if own_code(known[name]) is None and not makes_its_own:
            names.add(name)
    return names


def made(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields every call that creates an object, `Class(...)` or `Class.at(...)`, with the name of the class."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "at":
            function = function.value
        if isinstance(function, ast.Name):
            yield function.id, node


def is_without_code(call: ast.Call) -> bool:
    """Whether a call has no argument `code=`."""
    return "code" not in [keyword.arg for keyword in call.keywords]


def own_super_calls(node: ast.ClassDef) -> Iterator[ast.Call]:
    """Yields the calls of `super().__init__` in a class."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            yield call


def used_codes() -> dict[str, list[str]]:
    """Returns every code in the source of kimbox/, with the modules that contain it.

    A code is an argument `code=` of a call, or the attribute `code = ` of a class.
    """
    used: dict[str, list[str]] = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call):
                values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            elif isinstance(node, ast.ClassDef) and (code := own_code(node)):
                used.setdefault(code, []).append(str(path))
            for value in values:
                for part in _results(value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        used.setdefault(part.value, []).append(str(path))
    return used


def _results(value: ast.expr) -> list[ast.expr]:
    """Returns the possible results of an expression: both branches of a conditional, else the expression."""
    return [*_results(value.body), *_results(value.orelse)] if isinstance(value, ast.IfExp) else [value]


def test_the_exit_codes_of_wrong_inputs() -> None:
    """A damaged box, a wrong digest, signature or package is a wrong input (3); a version that is missing is 5."""
    assert set(CODES) >= set(EXIT_CODES)
    for code, expected in {"bad-box": 3, "checksum-mismatch": 3, "signature-wrong": 3, "version-not-found": 5}.items():
        assert expected == KimboxError("x", code=code).exit_code == ImageError("x", code=code).exit_code
    assert 1 == KimboxError("x", code="command-failed").exit_code
    assert 5 == StateError("x", code="bad-box").exit_code


def test_every_code_that_is_used_is_in_the_catalog() -> None:
    """The documents list the codes of the catalog only."""
    assert {} == {code: where for code, where in used_codes().items() if code not in CODES}


def test_every_code_of_the_catalog_is_used() -> None:
    """A code that no error has would mislead callers."""
    assert [] == sorted(set(CODES) - set(used_codes()))


def test_the_catalog_is_in_order() -> None:
    """Codes are words with hyphens, sorted; each meaning is a sentence on one line that fits into a table."""
    assert sorted(CODES) == list(CODES)
    assert [] == [code for code in CODES if not CODE.fullmatch(code)]
    wrong = [text for text in CODES.values() if not text[0].isupper() or text[-1] != "." or "|" in text or "\n" in text]
    assert [] == wrong


def test_errors_have_codes() -> None:
    """Every error of a general class is raised with a code of its own."""
    known = classes()
    generic = must_pass_a_code(known)
    without = []
    for path, tree in trees():
        calls = [call for name, call in made(tree) if name in generic]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name in errors(known) - {"KimboxError"}:
                calls += own_super_calls(node)
        without += [f"{path}:{call.lineno}" for call in calls if is_without_code(call)]
    assert [] == without


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise KimboxError('x')", True),
        ("error = StateError('x', hint='y')", True),
        ("raise SpecError.at('f', 'x', line=2)", True),
        ("raise KimboxError('x', code='failed')", False),
        ("raise ValueError('x')", None),
    ],
)
def test_an_error_without_a_code_is_detected(text: str, expected: bool | None) -> None:
    """In a `raise`, in an assignment and with `at`. Other exceptions need no code."""
    calls = [is_without_code(call) for name, call in made(ast.parse(text)) if name in GENERIC]
    assert ([] if expected is None else [expected]) == calls


def test_code_and_fields_are_in_the_json() -> None:
    """`code` is the passed code, else that of the class. `fields` is always a member."""
    error = StateError("no box x", code="box-not-found", fields={"name": "x"}, hint="see `kimbox list`")
    assert error.as_json() == {
        "kind": "StateError",
        "code": "box-not-found",
        "message": "no box x",
        "hint": "see `kimbox list`",
        "fields": {"name": "x"},
        "exit_code": 5,
    }
    assert "guest-failed" == GuestError("x").as_json()["code"]
    assert "interrupted" == Interrupted("x").as_json()["code"]
    assert {} == KimboxError("x").as_json()["fields"]


def test_problems_have_codes_of_their_own() -> None:
    """An error with one problem has the code of the problem. The text does not show it."""
    error = SpecError.at("a.yaml", "what is wrong", code="unknown-key", line=3, column=7, hint="try this")
    problem = {"file": "a.yaml", "line": 3, "column": 7, "message": "what is wrong", "hint": "try this"}
    assert ("unknown-key", [problem | {"code": "unknown-key"}]) == (error.code, error.as_json()["problems"])
    assert "a.yaml:3:7: what is wrong (try this)" == str(error)
    several = SpecError([Problem("a", 2, 1, "y", code="unknown-key"), Problem("a", 1, 1, "x")])
    assert ("bad-spec", ["bad-spec", "unknown-key"]) == (several.code, [p.code for p in several.problems])
