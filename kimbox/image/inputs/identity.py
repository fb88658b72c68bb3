"""Reads the table of provisioners/identity: the keys and identities that packages create at installation.

Each file of its identity.d is a shell script that creates them in a new root. Lines at its top name paths: `# needs:
PATH`, `# removes: PATH` and `# data: PATH`; provisioners/identity/root/usr/lib/kimbox/identity says what they mean.
"""

from __future__ import annotations

import re
from itertools import takewhile

import attrs

from kimbox.errors import ImageError
from kimbox.image.inputs import provisioners

FOLDER = "usr/lib/kimbox/identity.d/"

_NAME = re.compile(r"[0-9]{2}-([a-z0-9][a-z0-9+.-]*)")
#: A line that looks like one of _LINE, but has another form or is not at the top: a mistake in the script.
_STRAY = re.compile(r"#\s*+(needs|removes|data)\s*+:")
_LINE = re.compile(r"# (needs|removes|data): (/[A-Za-z0-9/._*-]+)")


@attrs.frozen
class Maker:
    """A package and the files that it creates, as paths and patterns of fnmatch(3)."""

    package: str
    #: The package is installed if this file exists.
    needs: str
    #: Keys and identities. They are removed from images and from copies of a machine's disk.
    removes: tuple[str, ...]
    #: Files that may hold a maintainer's data. They are removed when an image is built, and refused afterwards.
    data: tuple[str, ...]


def makers() -> tuple[Maker, ...]:
    """The whole table, in the order in which the scripts run. Raises ImageError if a file has another form."""
    files = provisioners.load("identity").files
    return tuple(parse(file.path, file.data.decode()) for file in files if file.path.startswith(FOLDER))


def parse(path: str, text: str) -> Maker:
    """Reads one file of identity.d. Raises ImageError if it has another form."""
    name = _NAME.fullmatch(path.rpartition("/")[2])
    lines = text.splitlines()
    paths: dict[str, list[str]] = {"needs": [], "removes": [], "data": []}
    matches = [_LINE.fullmatch(line) for line in lines[1:]]
    top = list(takewhile(bool, matches))
    for match in filter(None, top):
        paths[match[1]].append(match[2])
    has_more = any(_STRAY.match(line) for line in lines[1 + len(top) :])
    if (
        not name
        or lines[:1] != ["#!/bin/sh"]
        or len(paths["needs"]) != 1
        or has_more
        or not paths["removes"] + paths["data"]
    ):
        raise ImageError(f"{path} is not of the form of identity.d", hint="install kimbox anew")
    return Maker(name[1], paths["needs"][0], tuple(paths["removes"]), tuple(paths["data"]))
