"""Lines for debugfs(8), which takes more from them than commands.

It reads in pieces of 8191 bytes, and hands a line or such a piece that begins with `!` to system(3). So a line holds
constants and numbers of kimbox's own, and never a name or text of a guest.
"""

from __future__ import annotations

from collections.abc import Iterable

#: The only commands in use; none of them runs a program.
COMMANDS = ("cd", "write", "set_inode_field")

#: Far below the piece that debugfs reads.
MAX_LINE = 1024


def script(lines: Iterable[str]) -> str:
    """The lines as the input of `debugfs -f -`.

    Raises ValueError for a line that is too long, is not plain ASCII text or begins with another command: a bug.
    """
    checked = []
    for line in lines:
        is_plain = line.isascii() and line.isprintable()
        if not is_plain or len(line) > MAX_LINE or line.split(" ")[0] not in COMMANDS:
            raise ValueError(f"no line for debugfs: {line[:100]!r}")
        checked.append(f"{line}\n")
    return "".join(checked)
