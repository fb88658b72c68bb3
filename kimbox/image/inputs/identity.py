"""Reads the table of provisioners/identity: the keys and identities that packages create at installation.

Each file in identity.d is a shell script that creates the keys of one package in a new root. The lines at its top name
paths: `# needs: PATH`, `# removes: PATH` and `# data: PATH`. provisioners/identity/root/usr/lib/kimbox/identity
documents them.
"""

from __future__ import annotations

import re
from itertools import takewhile

import attrs

from kimbox.errors import ImageError
from kimbox.image.inputs import provisioners

#: Path of identity.d in the guest.
FOLDER = "usr/lib/kimbox/identity.d/"

_NAME = re.compile(r"[0-9]{2}-([a-z0-9][a-z0-9+.-]*)")
#: A line similar to _LINE. If it has another form or is not at the top, the script has an error.
_STRAY = re.compile(r"#\s*+(needs|removes|data)\s*+:")
_LINE = re.compile(r"# (needs|removes|data): (/[A-Za-z0-9/._*-]+)")


@attrs.frozen
class Maker:
    """A package that creates keys or identities, and these files, as paths and patterns of fnmatch(3)."""

    package: str
    #: The package is installed if this file exists.
    needs: str
    #: Keys and identities. kimbox removes them from images and from copies of a machine's disk.
    removes: tuple[str, ...]
    #: Files that may contain data of a maintainer. kimbox removes them when it builds an image, and refuses them later.
    data: tuple[str, ...]


def makers() -> tuple[Maker, ...]:
    """The complete table, in the order in which the scripts run. Raises ImageError (`bad-provisioner`)."""
    files = provisioners.load("identity").files
    return tuple(parse(file.path, file.data.decode()) for file in files if file.path.startswith(FOLDER))


def parse(path: str, text: str) -> Maker:
    """Reads one file of identity.d. Raises ImageError (`bad-provisioner`) if it has another form."""
    name = _NAME.fullmatch(path.rpartition("/")[2])
    lines = text.splitlines()
    paths: dict[str, list[str]] = {"needs": [], "removes": [], "data": []}
    matches = [_LINE.fullmatch(line) for line in lines[1:]]
    top_matches = list(takewhile(bool, matches))
    for match in filter(None, top_matches):
        paths[match[1]].append(match[2])
    has_stray_lines = any(_STRAY.match(line) for line in lines[1 + len(top_matches) :])
    if (
        not name
        or lines[:1] != ["#!/bin/sh"]
        or len(paths["needs"]) != 1
        or has_stray_lines
        or not paths["removes"] + paths["data"]
    ):
        raise ImageError(
            f"{path} does not have the form of a file in identity.d",
            code="bad-provisioner",
            hint="reinstall kimbox",
            fields={"name": "identity", "path": path},
        )
    return Maker(name[1], paths["needs"][0], tuple(paths["removes"]), tuple(paths["data"]))
