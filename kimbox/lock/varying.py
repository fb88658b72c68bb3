"""The files of an image that differ between two builds, as the lock lists them. Pure.

A program of a package can write a random number or a time at installation. kimbox names such files and expects only
them to differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Maximum number of files that a lock lists.
MAX_FILES = 1000

#: Maximum length of a path that a lock lists, in characters.
MAX_PATH_CHARACTERS = 500

#: A file that only one of two builds has, and what a lock lists in its place: the folder, whose entries differ. The
#: name of the file may be random.
PRESENCE, ENTRIES = "presence", "entries"

#: Separator of the aspects of a file in the lock.
_SEPARATOR = ", "

#: Path of a file -> how it differs, for example `content, time`.
Varying = Mapping[str, str]


def joined(known: Varying, found: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Returns the files of `known`, and those of `found` with their aspects, sorted by path."""
    aspects = {path: set(value.split(_SEPARATOR)) for path, value in known.items()}
    for path, new in listed(found).items():
        aspects.setdefault(path, set()).update(new)
    return {path: _SEPARATOR.join(sorted(aspects[path])) for path in sorted(aspects)}


def unexpected(known: Varying, found: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns the paths of `found` that differ in an aspect that `known` does not list for them, sorted."""
    return sorted(path for path, aspects in found.items() if not _is_listed(known, {path: aspects}))


def _is_listed(known: Varying, found: Mapping[str, Iterable[str]]) -> bool:
    return all(new <= set(known.get(path, "").split(_SEPARATOR)) for path, new in listed(found).items())


def is_listable(files: Varying) -> bool:
    """Whether a lock may list these files: there is a limit on their number and on the length of their paths."""
    return len(files) <= MAX_FILES and all(len(path) <= MAX_PATH_CHARACTERS for path in files)


def listed(found: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Returns the paths and aspects as a lock lists them."""
    aspects: dict[str, set[str]] = {}
    for path, new in found.items():
        if others := set(new) - {PRESENCE}:
            aspects.setdefault(path, set()).update(others)
        if PRESENCE in new:
            aspects.setdefault(path.rpartition("/")[0] or "/", set()).add(ENTRIES)
    return aspects
