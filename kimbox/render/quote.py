"""Quoting for the shell that reads our files in the guest. The one place where text becomes shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


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
