"""What packages are known to make by chance at installation: the table of provisioners/identity.

Each file of its identity.d is a shell script that makes it in a new root, with lines `# needs: PATH`, `# removes: PATH`
and `# data: PATH` at its top; provisioners/identity/root/usr/lib/kimbox/identity says what they mean.
"""

from __future__ import annotations

import re
from itertools import takewhile

import attrs

from kimbox.errors import ImageError
from kimbox.image.inputs import provisioners

FOLDER = "usr/lib/kimbox/identity.d/"

_NAME = re.compile(r"[0-9]{2}-([a-z0-9][a-z0-9+.-]*)")
#: Anything like such a line, further down or of another form.
_STRAY = re.compile(r"#\s*+(needs|removes|data)\s*+:")
_LINE = re.compile(r"# (needs|removes|data): (/[A-Za-z0-9/._*-]+)")


@attrs.frozen
class Maker:
    """A package and what it makes, as paths and patterns of fnmatch(3)."""

    package: str
    #: Without this file the package is not there.
    needs: str
    #: Keys and identities: they go from images, and from copies of a machine's disk.
    removes: tuple[str, ...]
    #: What may hold a maintainer's data: it goes from images when they are built, and is refused afterwards.
    data: tuple[str, ...]


def makers() -> tuple[Maker, ...]:
    """Every one, in the order in which they run. Raises ImageError for a file that is not of the form."""
    files = provisioners.load("identity").files
    return tuple(parse(file.path, file.data.decode()) for file in files if file.path.startswith(FOLDER))


def parse(path: str, text: str) -> Maker:
    """Reads one file. Raises ImageError if it is not of the form."""
    name = _NAME.fullmatch(path.rpartition("/")[2])
    lines = text.splitlines()
    found: dict[str, list[str]] = {"needs": [], "removes": [], "data": []}
    matches = [_LINE.fullmatch(line) for line in lines[1:]]
    top = list(takewhile(bool, matches))
    for match in filter(None, top):
        found[match[1]].append(match[2])
    has_more = any(_STRAY.match(line) for line in lines[1 + len(top) :])
    if (
        not name
        or lines[:1] != ["#!/bin/sh"]
        or len(found["needs"]) != 1
        or has_more
        or not found["removes"] + found["data"]
    ):
        raise ImageError(f"{path} is not of the form of identity.d", hint="install kimbox anew")
    return Maker(name[1], found["needs"][0], tuple(found["removes"]), tuple(found["data"]))
