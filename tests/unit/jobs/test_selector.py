"""Patterns of `kimbox job extract --only` and of `vet:`, on names that the guest has chosen."""

from __future__ import annotations

import pytest

from kimbox.errors import UsageError
from kimbox.jobs.disk.extract import MAX_PATTERN, selector


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("output/*.txt", [b"output/a.txt", b"output/.txt"], [b"output/a/b.txt", b"output/atxt", b"output"]),
        ("**/*.png", [b"a.png", b"x/y/a.png", b"x/a.png/b"], [b"a.pngx", b"png"]),
        ("output", [b"output", b"output/x/y"], [b"outputs", b"x/output"]),
        ("a?c", [b"abc"], [b"a/c", b"ac", b"abbc"]),
        ("a*b*c", [b"abc", b"axxbyyc", b"abcbc"], [b"acb", b"a", b"ab/c"]),
        ("x/**/y", [b"x/y", b"x/1/2/y"], [b"x", b"xy", b"y"]),
        ("[x]", [b"[x]"], [b"x"]),
        ("*\udcff", [b"a\n\xff"], [b"a"]),
        ("/out/", [b"out", b"out/a"], [b"o"]),
    ],
)
def test_patterns(pattern: str, matching: list[bytes], other: list[bytes]) -> None:
    is_selected = selector([pattern])
    assert matching == [path for path in [*matching, *other] if is_selected(path)]


def test_no_name_takes_long() -> None:
    """A pattern with many stars would need years with backtracking."""
    assert not selector(["*a" * 400 + "*b"])(b"a" * 2900)
    assert not selector(["/".join(["**", "a"] * 150) + "/b"])(b"a/" * 1400 + b"c")


def test_no_pattern_selects_all() -> None:
    assert selector([])(b"anything")
    assert selector(["x", "y"])(b"y/z")


@pytest.mark.parametrize("pattern", ["", "/", "x" * (MAX_PATTERN + 1)])
def test_no_pattern(pattern: str) -> None:
    with pytest.raises(UsageError):
        selector([pattern])
