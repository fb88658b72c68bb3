"""Searches for secrets: on a disk, and in the command lines and environments of this host."""

from __future__ import annotations

import re
from pathlib import Path

from kimbox.sparse import data_ranges


def found_on(disk: Path, *patterns: bytes) -> set[bytes]:
    """Returns the different texts on a sparse disk that match. The pieces overlap, so that no text is divided."""
    present: set[bytes] = set()
    with disk.open("rb") as file:
        for start, end in data_ranges(file.fileno()):
            for at in range(start, end, 16 << 20):
                file.seek(at)
                piece = file.read(min((16 << 20) + 400, end - at))
                for pattern in patterns:
                    present.update(re.findall(pattern, piece))
    return present


def command_lines() -> list[bytes]:
    """Returns the command lines and environments of all processes of this host."""
    contents = []
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                contents.append((folder / name).read_bytes())
            except OSError:
                continue
    return contents
