"""Explains why apt cannot choose packages: names that do not exist, with the name that was meant, and conflicts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: Maximum length of a name that is compared with others, and maximum number of names that it is compared with.
MAX_COMPARED_CHARACTERS = 60
MAX_COMPARED_NAMES = 5000

#: Maximum number of lines about conflicts that a message repeats.
MAX_CONFLICT_LINES = 12

_MISSING = re.compile(r"E: (?:Unable to locate package |Package ')([a-z0-9][a-z0-9+.-]*)")
_UNMET = "The following packages have unmet dependencies:"


def missing_packages(stderr: str) -> list[str]:
    """The names that apt does not find, or for which it has no version to install, in the order of its messages."""
    return list(dict.fromkeys(match[1] for line in stderr.splitlines() if (match := _MISSING.match(line))))


def similar_package(name: str, known: Iterable[str]) -> str | None:
    """The package that was probably meant by `name`; None if no name is similar."""
    if len(name) > MAX_COMPARED_CHARACTERS:
        return None
    near = [word for word in known if word[:1] == name[:1] and abs(len(word) - len(name)) <= 3]
    near.sort(key=lambda word: (-_common(word, name), word))
    return next(iter(difflib.get_close_matches(name, near[:MAX_COMPARED_NAMES], n=1, cutoff=0.75)), None)


def _common(word: str, name: str) -> int:
    """The number of equal characters at the start of two names."""
    return next((at for at, (one, other) in enumerate(zip(word, name, strict=False)) if one != other), len(word))


def conflicts(stdout: str) -> list[str]:
    """The lines of apt's output about dependencies that cannot be met."""
    _, heading, rest = stdout.partition(_UNMET)
    lines = [line.strip() for line in rest.splitlines() if line.startswith(" ")] if heading else []
    return lines[:MAX_CONFLICT_LINES]
