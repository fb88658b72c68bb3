"""The command lines that copy files between this host and a guest, and the text that lists files of the guest.

rsync(1) copies if both sides have it, and continues after an interruption. Otherwise scp(1) copies, which every guest
with an ssh server can do. A copy is described as in cp(1), in a form in which both programs do the same: the content of
a folder goes into a folder with the complete name.

The guest is untrusted input. Nothing that comes from it is set-uid, symbolic links that lead out of the copied folder
are left out, and a file that it names for a pattern must match that pattern.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
import posixpath
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import attrs

from kimbox.guest.endpoint import Endpoint, ssh_options

#: Characters that form a pattern of file names, in a shell and in both programs.
WILDCARDS = "*?["

#: Folder, beside a file that was not copied completely, in which rsync keeps the first part of it.
PARTIAL = ".kimbox-partial"

#: Maximum number of files of the guest that one command names.
MAX_NAMES = 10_000

#: Oldest rsync on this host that checks the names which the other side sends (CVE-2022-29154).
SAFE_RSYNC = (3, 2, 5)

#: The line before the files of each path in the output of `listing`, and the line that says that there is an rsync.
_NEXT, _HAS_RSYNC = "=", "+rsync"


@attrs.frozen
class Item:
    """A file or a folder: its path, its name in the folder that it is copied to, and its kind. A link is its target.

    The name of a path without one, such as `.`, is `.`: the content of the folder goes there.
    """

    path: str
    name: str
    is_folder: bool

    @classmethod
    def of(cls, path: str, *, is_folder: bool) -> Self:
        name = posixpath.basename(path.rstrip("/"))
        return cls(path, "." if name in ("", ".", "..") else name, is_folder)


@attrs.frozen
class Transfer:
    """Paths that one program copies in one direction. All paths are complete; those of the guest may be relative."""

    sources: tuple[str, ...]
    target: str
    #: The only source is a folder, whose content goes into the folder `target`.
    is_folder: bool
    to_guest: bool


def guest_path(path: str) -> str:
    """Returns a path in the guest as both programs take it. `~` and nothing are the folder of the user."""
    path = path.removeprefix("~/") if path.startswith("~/") else "" if path == "~" else path
    return path if path.startswith("/") else f"./{path}"


def transfers(items: Sequence[Item], target: str, *, in_folder: bool, to_guest: bool) -> list[Transfer]:
    """Returns what must be copied so that each item is in the folder `target`, or is `target` if not `in_folder`."""
    if not in_folder:
        return [Transfer((item.path,), target, item.is_folder, to_guest) for item in items]
    files = tuple(item.path for item in items if not item.is_folder)
    pieces = [files[start : start + 500] for start in range(0, len(files), 500)]
    return [
        *(Transfer(piece, f"{target.rstrip('/')}/", is_folder=False, to_guest=to_guest) for piece in pieces),
        *(
            Transfer((item.path,), f"{target.rstrip('/')}/{item.name}", is_folder=True, to_guest=to_guest)
            for item in items
            if item.is_folder
        ),
    ]


def rsync(endpoint: Endpoint, transfer: Transfer, settings: Mapping[str, str]) -> list[str]:
    """Returns the command line of rsync(1). It runs in the folder of the box's key."""
    options = ssh_options(endpoint, settings=settings, cwd=endpoint.key_path.parent)
    shell = " ".join("'" + word.replace("'", "''") + "'" for word in ("ssh", *options))  # the quotes of --rsh
    argv = ["rsync", "--recursive", "--links", "--perms", "--times", "--sparse", "--chmod=ugo-s"]
    argv += [f"--partial-dir={PARTIAL}", "--info=progress2", "--no-inc-recursive", "--rsh", shell]
    if not transfer.is_folder:
        argv.append("--copy-links")
    elif not transfer.to_guest:
        argv.append("--safe-links")
    end = "/" if transfer.is_folder else ""
    sources = [f"{path.rstrip('/')}{end}" for path in transfer.sources]
    target = f"{transfer.target.rstrip('/')}{end}" if transfer.is_folder else transfer.target
    if transfer.to_guest:
        return [*argv, "--", *sources, f"{endpoint.host}:{_escaped(target)}"]
    return [*argv, "--", *(f"{endpoint.host}:{_escaped(source)}" for source in sources), target]


def scp(endpoint: Endpoint, transfer: Transfer, settings: Mapping[str, str]) -> list[str]:
    """Returns the command line of scp(1). It runs in the folder of the box's key."""
    options = ssh_options(endpoint, settings=settings, cwd=endpoint.key_path.parent)
    argv = ["scp", *options, "-q", "-p", *(["-r"] if transfer.is_folder else [])]
    end = "/." if transfer.is_folder else ""
    sources = [f"{path.rstrip('/')}{end}" for path in transfer.sources]
    if transfer.to_guest:
        return [*argv, "--", *sources, f"{endpoint.host}:{transfer.target}"]
    sources = [_escaped(source, "\\") for source in sources]
    return [*argv, "--", *(f"{endpoint.host}:{source}" for source in sources), transfer.target]


def _escaped(path: str, more: str = "") -> str:
    """Returns a path of the guest in which wildcards, and the characters of `more`, have no special meaning."""
    return "".join(f"\\{c}" if c in f"{WILDCARDS}{more}" else c for c in path)


def listing(paths: Iterable[str], *, patterns: bool) -> str:
    """Returns the shell text that lists files of the guest for a `Listing`. `patterns`: wildcards have a meaning."""
    lines = ["export LC_ALL=C", f"command -v rsync >/dev/null && echo {_HAS_RSYNC}"]
    for path in paths:
        lines += [f"echo {_NEXT}", f"ls -dpL1 --quoting-style=c -- {_pattern(path) if patterns else shlex.quote(path)}"]
    return "\n".join(lines)


def _pattern(path: str) -> str:
    """Returns a path for a shell, in which only wildcards have a special meaning."""
    return "".join(c if c in WILDCARDS or c in "]-!" else shlex.quote(c) for c in path)


@attrs.define
class Listing:
    """What the guest says about some paths: whether it has rsync, and for each path its files and other output."""

    paths: tuple[str, ...]
    has_rsync: bool = False
    #: For each path, in order, the files that are there. A path with wildcards may have several.
    items: list[list[Item]] = attrs.field(factory=list)
    #: Messages of the guest.
    messages: list[str] = attrs.field(factory=list)

    def feed(self, line: str) -> None:
        """Reads a line of the output."""
        if line == _HAS_RSYNC and not self.items:
            self.has_rsync = True
        elif line == _NEXT and len(self.items) < len(self.paths):
            self.items.append([])
        elif self.items and (item := _item(line)) and len(self.items[-1]) < MAX_NAMES:
            path = self.paths[len(self.items) - 1]
            # The guest does not decide which file is copied.
            if not is_pattern(path):
                self.items[-1] = [Item.of(path, is_folder=item.is_folder)]
            elif _matches(item.path, path):
                self.items[-1].append(item)
        elif len(self.messages) < MAX_NAMES:
            self.messages.append(line)


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards."""
    return any(c in WILDCARDS for c in path)


def _item(line: str) -> Item | None:
    """Reads a line of ls(1): a name in the quotes of C, and `/` if it is a folder. None for another line."""
    quoted = line.removesuffix("/")
    if len(quoted) < 2 or not (quoted[0] == quoted[-1] == '"' and quoted.isascii()):
        return None
    try:
        name, _ = codecs.escape_decode(quoted[1:-1].encode())
    except ValueError:
        return None
    return Item.of(os.fsdecode(name), is_folder=line.endswith("/")) if b"\0" not in name else None


def _matches(path: str, pattern: str) -> bool:
    """Whether a shell may have found a path for a pattern. A wildcard matches neither `/` nor a first dot."""
    parts, patterns = path.split("/"), pattern.split("/")
    return path == pattern or (
        len(parts) == len(patterns)
        and all(
            part == each or (part[:1] != "." and part != "" and fnmatch.fnmatchcase(part, each))
            for part, each in zip(parts, patterns, strict=True)
        )
    )
