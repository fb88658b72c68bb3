"""Looks for regular expressions whose work grows faster than their text, with texts derived from the expression.

Work is the time of this process's processor, so that a busy machine changes little. What seems to grow is measured
again.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, AnyStr

#: Lengths of the texts. The first ones notice an exponential expression before it takes for ever. With the last, a
#: linear one takes a millisecond, and a quadratic one that does little for each character several tenths of a second.
LENGTHS = (*range(8, 42, 2), 60, 90, 140, 210, 320, 640, 2_500, 10_000, 50_000)

#: Less time than this is never called growth, in seconds.
FLOOR_S = 0.05

#: Fold of work that four times the text may take. Linear is 4, quadratic 16.
MOST_FOLD = 8

#: How often a suspicion is measured; the least of all results counts.
TRIES = 3

#: How much is combined: characters of a class, and of all classes; pieces in pairs; beginnings.
MAX_CHARACTERS, MAX_LETTERS, MAX_PAIRED, MAX_HEADS = 2, 8, 4, 3

#: How texts end: with the last piece, and with what hardly any expression takes.
TAILS = ("", "\x00")

_CATEGORIES = {
    codes.CATEGORY_DIGIT: "0", codes.CATEGORY_SPACE: " ", codes.CATEGORY_WORD: "a",
    codes.CATEGORY_NOT_DIGIT: "a", codes.CATEGORY_NOT_SPACE: "a", codes.CATEGORY_NOT_WORD: "-",
}  # fmt: skip


def hard_text(pattern: re.Pattern[AnyStr], methods: Iterable[str], longest: int = LENGTHS[-1]) -> str | None:
    """Describes a text on which one of these methods of an expression does more than linear work, if one is known."""
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
    """What one call takes of the processor. All that `finditer` finds is taken, as by `findall`, `sub` and `split`."""
    started = time.process_time()
    if method == "finditer":
        for _ in pattern.finditer(text):
            pass
    else:
        getattr(pattern, method)(text)
    return time.process_time() - started


def outgrows(run: Callable[[int], float], longest: int) -> bool:
    """Whether the work grows faster than the length of the text, up to a length."""
    for length in LENGTHS:
        if length <= longest and run(length) > FLOOR_S:
            return all(run(length) > max(FLOOR_S, MOST_FOLD * run(length // 4)) for _ in range(TRIES))
    return False


def texts(pattern: str, flags: int) -> Iterator[tuple[str, str, str]]:
    """What may be hard for an expression: what a text begins with, a piece to be repeated, what it ends with.

    Pieces are the characters of the expression, its beginnings, and pairs of both; they stand behind its beginnings.
    """
    tree = parser.parse(pattern, flags)
    heads = list(dict.fromkeys(beginnings(tree)))
    pieces = list(dict.fromkeys([*list(dict.fromkeys(alphabet(tree)))[:MAX_LETTERS], *heads[-4:]]))
    pairs = ["".join(pair) for pair in itertools.permutations(pieces[:MAX_PAIRED], 2)]
    yield from itertools.product(["", *heads[:MAX_HEADS]], pieces, TAILS)
    yield from itertools.product(["", *heads[:1]], pairs, TAILS[:1])


def alphabet(tree: Any) -> Iterator[str]:
    """Characters that an expression distinguishes: of each class a few; those that may repeat come first."""
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
    """A few characters of a class, and of what it leaves out."""
    found: list[str] = []
    ranges: set[str] = set()
    for code, value in items:
        if code is codes.LITERAL:
            found.append(chr(value))
        elif code is codes.RANGE:
            found.append(chr(value[0]))
            ranges.update(map(chr, range(value[0], value[1] + 1)))
        elif code is codes.CATEGORY:
            found.append(_CATEGORIES[value])
    if items[0][0] is codes.NEGATE:
        return [next(c for c in "a0 -\n" if c not in ranges and c not in found), *found[:MAX_CHARACTERS]]
    return found[:MAX_CHARACTERS]


def subtrees(value: Any) -> Iterator[Any]:
    """The parts of an expression below a node of its tree."""
    if isinstance(value, parser.SubPattern):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from subtrees(item)


def sample(tree: Any) -> str:
    """A text that these parts of an expression take: what repeats once, of branches the first."""
    found = ""
    for code, value in tree:
        if code is codes.LITERAL:
            found += chr(value)
        elif code is codes.IN:
            found += members(value)[0]
        elif code in (codes.ANY, codes.NOT_LITERAL):
            found += "a" if value != ord("a") else "b"
        elif code is codes.BRANCH:
            found += sample(value[1][0])
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            found += sample(value[2]) * max(1, min(value[0], 100))
        elif code is codes.SUBPATTERN:
            found += sample(value[-1])
        elif code is codes.ATOMIC_GROUP:
            found += sample(value)
    return found


def beginnings(tree: Any) -> Iterator[str]:
    """What an expression takes, up to the end of each of its parts that is no mere character."""
    text = ""
    for number, (code, value) in enumerate(tree):
        if code is codes.BRANCH:
            for branch in value[1]:
                yield from (text + more for more in beginnings(branch))
        elif code is codes.SUBPATTERN:
            yield from (text + more for more in beginnings(value[-1]))
        text += sample([(code, value)])
        if text and (code is not codes.LITERAL or number + 1 == len(tree) or tree[number + 1][0] is not codes.LITERAL):
            yield text
