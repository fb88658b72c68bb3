"""The only module that runs debugfs(8) or writes its scripts.

debugfs reads a script in pieces of 8191 bytes. It passes a line, or such a piece, that begins with `!` to system(3).
Therefore a line contains only constants and numbers from kimbox, and never a name or text from a guest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.run import Completed

#: The commands that kimbox uses. None of them runs a program.
COMMANDS = ("cd", "write", "set_inode_field")

#: Maximum length of a line, in characters: much less than a piece that debugfs reads.
MAX_LINE = 1024

#: Timeout of debugfs, in seconds.
TIMEOUT_S = 600.0

#: Prefix of the files, beside the disk, from which debugfs copies.
SOURCE_PREFIX = "reset-"


class Call(Protocol):
    """A function that runs a program with arguments and a text on its standard input."""

    def __call__(self, program: str, *args: str | Path, input: str) -> Completed: ...


@attrs.frozen
class NewFile:
    """Content and mode of a file that root owns. `mode` includes the type of the file."""

    data: bytes
    mode: int


def script(lines: Iterable[str]) -> str:
    """Returns the lines as the input of `debugfs -f -`.

    Raises ValueError (a bug) for a line that is too long, is not printable ASCII or begins with another command.
    """
    checked = []
    for line in lines:
        is_plain = line.isascii() and line.isprintable()
        if not is_plain or len(line) > MAX_LINE or line.split(" ")[0] not in COMMANDS:
            raise ValueError(f"invalid line for debugfs: {line[:100]!r}")
        checked.append(f"{line}\n")
    return "".join(checked)


def write_files(
    disk: Path, offset_bytes: int, folder_inode: int, files: Mapping[str, NewFile], env: Mapping[str, str]
) -> None:
    """Writes new files into a folder of the file system at an offset of a raw disk.

    The names of the files are from kimbox, and the folder does not have them yet. `env` is added to the environment of
    debugfs. Raises ImageError if debugfs fails.
    """
    lines = [f"cd <{folder_inode}>"]
    for name, new in files.items():
        disk.with_name(f"{SOURCE_PREFIX}{name}").write_bytes(new.data)
        lines += [f"write {SOURCE_PREFIX}{name} {name}", f"set_inode_field {name} mode 0{new.mode:o}"]
        lines += [f"set_inode_field {name} {field} 0" for field in ("uid", "gid")]
    done = run.run(
        ["debugfs", "-w", "-f", "-", f"{disk.name}?offset={offset_bytes}"],
        input=script(lines), cwd=disk.parent, env=dict(env), timeout_s=TIMEOUT_S,
    )  # fmt: skip
    for name in files:
        disk.with_name(f"{SOURCE_PREFIX}{name}").unlink()
    errors = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    if errors:
        raise ImageError(
            f"debugfs cannot write into the root file system: {run.tail(chr(10).join(errors), 3)}",
            code="command-failed",
            fields={"program": "debugfs"},
        )


def set_times(call: Call, device: str, inodes: Iterable[int], time_s: int) -> None:
    """Sets the change time and the access time of inodes to `time_s`, in Unix seconds.

    `device` is a disk with `?offset=`, as e2fsprogs accept it. `call` runs debugfs. Its errors are not caught.
    """

    lines = [f"set_inode_field <{number}> {field} @{time_s}" for number in inodes for field in ("ctime", "atime")]
    call("debugfs", "-w", "-f", "-", device, input=script(lines))
