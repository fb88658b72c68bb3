"""Quotes text for the shell that reads kimbox's files in the guest, and reads such files.

A file of assignments is UTF-8 and consists of lines NAME='value', each name once. A name has capital letters, digits
and underscores. A value is in single quotes and may contain every character but NUL. A single quote in it is written
'"'"': the quotes end, a quoted single quote follows, and the quotes start again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

#: Maximum size of a file of assignments.
MAX_BYTES = 1 << 20

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_LINE = re.compile(r"""([A-Z][A-Z0-9_]*)='([^']*(?:'"'"'[^']*)*)'\n""")


def assignments(values: Mapping[str, str | int]) -> bytes:
    """Returns lines NAME='value' that a POSIX shell can source. Raises ValueError for a bad name or a NUL."""
    lines = []
    for name, value in values.items():
        text = str(value)
        if not _NAME.fullmatch(name) or "\0" in text:
            raise ValueError(f"{name} cannot be assigned in a shell")
        quoted = shlex.quote(text)
        lines.append(f"{name}={quoted if quoted.startswith(chr(39)) else chr(39) + quoted + chr(39)}\n")
    return "".join(lines).encode()


def parse_assignments(data: bytes) -> dict[str, str]:
    """Returns the variables of a file that `assignments` wrote: the same values that a shell reads from it.

    Raises ValueError with the number of the line for every other content.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"a file of assignments is at most {MAX_BYTES >> 20} MiB")
    text = data.decode()
    values: dict[str, str] = {}
    end, line = 0, 1
    while end < len(text):
        match = _LINE.match(text, end)
        if not match or "\0" in match[2]:
            raise ValueError(f"line {line} is not NAME='value'")
        if match[1] in values:
            raise ValueError(f"line {line} assigns {match[1]} again")
        values[match[1]] = match[2].replace("'\"'\"'", "'")
        end = match.end()
        line += match[0].count("\n")
    return values
