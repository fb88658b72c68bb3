"""Reads the options of an entry in this machine's apt sources. `apt-get indextargets` names the entry, but not them.

Format: sources.list(5), both the one-line and the deb822 style.
"""

from __future__ import annotations

import re
from pathlib import Path

from kimbox.errors import KimboxError
from kimbox.files import read_bounded

#: Maximum size of a file of sources, in bytes.
MAX_BYTES = 1 << 20

_ONE_LINE = re.compile(r"\s*deb(?:-src)?\s+\[([^\]]*+)\]")
_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*:(.*)", re.DOTALL)


def options_of(entry: str) -> dict[str, str]:
    """The options of an entry `FILE:NUMBER`, by their names in lower case. Empty if the file cannot be read.

    The number is that of the line, or of the stanza in a file `.sources`.
    """
    file, _, number = entry.rpartition(":")
    if not number.isdecimal() or len(number) > 9:
        return {}
    try:
        text = read_bounded(Path(file), limit_bytes=MAX_BYTES).decode(errors="replace")
    except (OSError, KimboxError):
        return {}
    return stanza_options(text, int(number)) if file.endswith(".sources") else line_options(text, int(number))


def line_options(text: str, number: int) -> dict[str, str]:
    """The options in brackets of a line. The first line has the number 1."""
    lines = text.split("\n")
    match = _ONE_LINE.match(lines[number - 1]) if 0 < number <= len(lines) else None
    pairs = [option.partition("=") for option in match[1].split()] if match else []
    return {name.rstrip("+-").lower(): value for name, equals, value in pairs if equals}


def stanza_options(text: str, number: int) -> dict[str, str]:
    """The fields of a stanza in deb822 style. The first stanza has the number 1; comments are not counted.

    The lines of a value after the first keep their line breaks.
    """
    stanzas: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip():
            stanzas.append([])
        elif not line.startswith("#"):
            if line[0] in " \t" and stanzas[-1]:
                stanzas[-1][-1] += f"\n{line}"
            else:
                stanzas[-1].append(line)
    stanzas = [stanza for stanza in stanzas if stanza]
    chosen = stanzas[number - 1] if 0 < number <= len(stanzas) else []
    fields = [match for field in chosen if (match := _FIELD.fullmatch(field))]
    return {match[1].lower(): match[2].strip() for match in fields}
