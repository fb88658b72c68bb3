"""Reads os-release(5) in a root file system: the distribution and its release. Pure.

A guest may have written the file. Therefore its size is limited, and a value that is not a plain word is left out.
"""

from __future__ import annotations

import re

import attrs

from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.inodes import FileSystem

#: The file that packages install, and the file that an administrator may replace. The second is usually a link to the
#: first.
PATHS = (b"/etc/os-release", b"/usr/lib/os-release")

#: Maximum size of the file, in bytes.
MAX_BYTES = 64 << 10

#: A line with a value that is a plain word, with or without quotes.
_LINE = re.compile(r"""(ID|VERSION_CODENAME)=(["']?)([a-z0-9][a-z0-9._-]{0,63})\2""")


@attrs.frozen
class OsRelease:
    """The distribution (`debian`) and the code name of its release (`trixie`). Empty: not known."""

    distribution: str = ""
    suite: str = ""


def read(system: FileSystem) -> OsRelease:
    """Returns the values of os-release. Raises ImageError if the file system is damaged."""
    for path in PATHS:
        entry = directories.find(system, path)
        if entry is None or not entry.inode.is_file:
            continue
        data = ext4data.content(system, entry.inode, MAX_BYTES)
        if data is not None:
            return parse(data)
    return OsRelease()


def parse(data: bytes) -> OsRelease:
    """Returns the values in the content of os-release. As in a shell, the last assignment of a name counts."""
    values = {}
    for line in data.decode("ascii", "replace").split("\n"):
        if match := _LINE.fullmatch(line.rstrip()):
            values[match[1]] = match[3]
    return OsRelease(values.get("ID", ""), values.get("VERSION_CODENAME", ""))
