"""Finds regular expressions whose work grows faster than the length of the text. Derives the texts from the expression.

Work is measured as the CPU time of this process, so that a busy host changes it little. Growth that is detected once
is measured again.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, AnyStr

#: Lengths of the texts. The first lengths detect an exponential expression before a call lasts too long. With the last
#: length, a linear expression takes a millisecond, and a quadratic one with little work for each character several
#: tenths of a second.
LENGTHS = (*range(8, 42, 2), 60, 90, 140, 210, 320, 640, 2_500, 10_000, 50_000)

#: CPU time below which a call is never reported as growth, in seconds.
FLOOR_S = 0.05

#: Maximum factor of work for a text that is four times as long. Linear is 4, quadratic 16.
MOST_FOLD = 8

#: Number of measurements of growth that was detected once. All of them must show it.
TRIES = 3

#: Maximum numbers: characters of one class, characters of all classes, pieces that are paired, beginnings.
MAX_CHARACTERS, MAX_LETTERS, MAX_PAIRED, MAX_HEADS = 2, 8, 4, 3

#: Ends of the texts: none, and a character that hardly any expression matches.
TAILS = ("", "\x00")

_CATEGORIES = {
    codes.CATEGORY_DIGIT: "0", codes.CATEGORY_SPACE: " ", codes.CATEGORY_WORD: "a",
    codes.CATEGORY_NOT_DIGIT: "a", codes.CATEGORY_NOT_SPACE: "a", codes.CATEGORY_NOT_WORD: "-",
}  # fmt: skip


def hard_text(pattern: re.Pattern[AnyStr], methods: Iterable[str], longest: int = LENGTHS[-1]) -> str | None:
    """Returns a description of a text on which one of these methods does more than linear work, or None."""
    is_text = isinstance(pattern.pattern, str)
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    for (head, unit, tail), method in itertools.product(texts(source, pattern.flags & ~re.UNICODE), sorted(methods)):

        def run(length: int, parts: tuple[str, str, str] = (head, unit, tail), method: str = method) -> float:
            text: Any = parts[0] + parts[1] * (length // len(parts[1])) + parts[2]
            return seconds(pattern, method, text if is_text else text.encode("latin-1"))

        if outgrows(run, longest):
            return f"{method} of {head!r} + {unit!r} * n + {tail!r}"
    return None


def seconds(pattern: re.Pattern[AnyStr], method: str, text: AnyStr) -> float:
    """Returns the CPU time of one call in seconds. `finditer` is read to its end, as `findall` and `split` do."""
    started = time.process_time()
    if method == "finditer":
        for _ in pattern.finditer(text):
            pass
    else:
        getattr(pattern, method)(text)
    return time.process_time() - started


def outgrows(run: Callable[[int], float], longest: int) -> bool:
    """Whether the work grows faster than the length of the text, for lengths up to `longest`."""
    for length in LENGTHS:
        if length <= longest and run(length) > FLOOR_S:
            return all(run(length) > max(FLOOR_S, MOST_FOLD * run(length // 4)) for _ in range(TRIES))
    return False


def texts(pattern: str, flags: int) -> Iterator[tuple[str, str, str]]:
    """Yields texts that may be slow for an expression: the beginning, a piece that is repeated, and the end.

    Pieces are the characters of the expression, its beginnings, and pairs of both. They follow its beginnings.
    """
    tree = parser.parse(pattern, flags)
    heads = list(dict.fromkeys(beginnings(tree)))
    pieces = list(dict.fromkeys([*list(dict.fromkeys(alphabet(tree)))[:MAX_LETTERS], *heads[-4:]]))
    pairs = ["".join(pair) for pair in itertools.permutations(pieces[:MAX_PAIRED], 2)]
    yield from itertools.product(["", *heads[:MAX_HEADS]], pieces, TAILS)
    yield from itertools.product(["", *heads[:1]], pairs, TAILS[:1])


def alphabet(tree: Any) -> Iterator[str]:
    """Yields the characters that an expression distinguishes, a few of each class. Repeatable characters come first."""
    later = []
    for code, value in tree:
        if code is codes.LITERAL:
            later.append(chr(value))
        elif code is codes.NOT_LITERAL:
            yield "a" if value != ord("a") else "b"
            later.append(chr(value))
        elif code is codes.IN:
            yield from members(value)
        elif code is codes.ANY:
            yield "a"
        else:
            for below in subtrees(value):
                yield from alphabet(below)
    yield from later


def members(items: Any) -> list[str]:
    """Returns a few characters of a class. For a negated class, the first character is outside of its ranges."""
    characters: list[str] = []
    ranges: set[str] = set()
    for code, value in items:
        if code is codes.LITERAL:
            characters.append(chr(value))
        elif code is codes.RANGE:
            characters.append(chr(value[0]))
            ranges.update(map(chr, range(value[0], value[1] + 1)))
        elif code is codes.CATEGORY:
            characters.append(_CATEGORIES[value])
    if items[0][0] is codes.NEGATE:
        return [next(c for c in "a0 -\n" if c not in ranges and c not in characters), *characters[:MAX_CHARACTERS]]
    return characters[:MAX_CHARACTERS]


def subtrees(value: Any) -> Iterator[Any]:
    """Yields the subexpressions below a node of the tree of an expression."""
    if isinstance(value, parser.SubPattern):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from subtrees(item)


def matching_text(tree: Any) -> str:
    """Returns a text that these parts of an expression match. Branches: the first. Repetitions: the minimum, but 1."""
    text = ""
    for code, value in tree:
        if code is codes.LITERAL:
            text += chr(value)
        elif code is codes.IN:
            text += members(value)[0]
        elif code in (codes.ANY, codes.NOT_LITERAL):
            text += "a" if value != ord("a") else "b"
        elif code is codes.BRANCH:
            text += matching_text(value[1][0])
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            text += matching_text(value[2]) * max(1, min(value[0], 100))
        elif code is codes.SUBPATTERN:
            text += matching_text(value[-1])
        elif code is codes.ATOMIC_GROUP:
            text += matching_text(value)
    return text


def beginnings(tree: Any) -> Iterator[str]:
    """Yields texts that match the expression up to the end of each part that is not a single character."""
    text = ""
    for number, (code, value) in enumerate(tree):
        if code is codes.BRANCH:
            for branch in value[1]:
                yield from (text + more for more in beginnings(branch))
        elif code is codes.SUBPATTERN:
            yield from (text + more for more in beginnings(value[-1]))
        text += matching_text([(code, value)])
        if text and (code is not codes.LITERAL or number + 1 == len(tree) or tree[number + 1][0] is not codes.LITERAL):
            yield text
