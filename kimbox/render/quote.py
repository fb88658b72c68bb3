"""Quoting for the shell that reads our files in the guest. The one place where text becomes shell, and is read back.

A file of assignments is UTF-8, and nothing but lines NAME='value', each name once. A name is of capital letters, digits
and underscores. A value stands between single quotes and may hold anything but NUL; a single quote in it is written
'"'"', which is to say: the quotes end, a quoted single quote follows, and they begin again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

#: A file of assignments is no larger.
MAX_BYTES = 1 << 20

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_LINE = re.compile(r"""([A-Z][A-Z0-9_]*)='([^']*(?:'"'"'[^']*)*)'\n""")


def assignments(values: Mapping[str, str | int]) -> bytes:
    """Lines NAME='value' that a POSIX shell can source; a value may hold anything but NUL."""
    lines = []
    for name, value in values.items():
        text = str(value)
        if not _NAME.fullmatch(name) or "\0" in text:
            raise ValueError(f"{name} cannot be assigned in a shell")
        quoted = shlex.quote(text)
        lines.append(f"{name}={quoted if quoted.startswith(chr(39)) else chr(39) + quoted + chr(39)}\n")
    return "".join(lines).encode()


def parse_assignments(data: bytes) -> dict[str, str]:
    """What a shell would have after sourcing a file that `assignments` wrote.

    Raises ValueError, naming the line, for anything else: what this takes, a shell reads as the same values.
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
