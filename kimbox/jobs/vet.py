"""Vets the results of a job before they are used: what does not pass goes into quarantine beside the output.

The guest's root wrote the results. Names, kinds of content and sizes are checked here. A command of the user checks
what it likes. A symbolic link passes if it leads to a folder or file of the output that has passed.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.files import CHUNK_BYTES
from kimbox.image.disk.ext4.directories import shown
from kimbox.jobs.disk.extract import selector

#: Folders among the results.
OUTPUT, QUARANTINE = "output", "quarantine"

#: Timeout of the command for one file, in seconds.
COMMAND_TIMEOUT_S = 60.0

#: Kinds of content, by their first bytes. `text` is UTF-8 without control characters.
TEXT = "text"
MAGIC = {
    "gif": b"GIF8",
    "gzip": b"\x1f\x8b",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff",
    "npy": b"\x93NUMPY",
    "pdf": b"%PDF-",
    "png": b"\x89PNG\r\n\x1a\n",
    "xz": b"\xfd7zXZ\0",
    "zip": b"PK\x03\x04",
    "zstd": b"\x28\xb5\x2f\xfd",
}
KINDS = (TEXT, *MAGIC)

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@attrs.frozen
class Vetting:
    """What results must be like. An empty tuple, or None, allows everything."""

    #: Patterns of paths below `output`, as those of `kimbox job extract --only`.
    names: tuple[str, ...] = ()
    #: Of KINDS.
    kinds: tuple[str, ...] = ()
    max_bytes: int | None = None
    #: Program and arguments. The path of the file follows; exit status 0 lets it pass.
    command: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Returns what `attrs.asdict` and JSON have made a dictionary. Raises KeyError and TypeError."""
        lists = {key: tuple(value[key]) for key in ("names", "kinds", "command")}
        return cls(max_bytes=value["max_bytes"], **lists)


@attrs.frozen
class Rejected:
    """A result that did not pass. `path` is below `output`."""

    path: bytes
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


def vet(results: Path, vetting: Vetting, job_folder: Path) -> list[Rejected]:
    """Moves results that do not pass from `output` to `quarantine`, both in the folder `results`. Returns them.

    `job_folder`: where the command runs, and where its path begins if it is relative. OSError passes.
    """
    root = os.fsencode(results / OUTPUT)
    if not os.path.lexists(root):
        return []
    if os.path.islink(root) or not os.path.isdir(root):  # noqa: PTH112, PTH114 - names of results may not be text
        _move(OUTPUT.encode(), os.fsencode(results), os.fsencode(results / QUARANTINE))
        return [Rejected(b".", f"{OUTPUT} is not a folder")]
    is_allowed = selector(vetting.names)
    paths = sorted(_files(root))
    rejected = []
    for is_link in (False, True):  # links last: what they lead to has been judged
        for path in paths:
            full = b"%s/%s" % (root, path)
            if os.path.islink(full) is not is_link:  # noqa: PTH114
                continue
            reason = "its name is not allowed"
            if is_allowed(path):
                reason = _problem_of_link(full, root) if is_link else _problem(full, vetting, job_folder)
            if reason:
                _move(path, root, os.fsencode(results / QUARANTINE))
                rejected.append(Rejected(path, reason))
    return rejected


def _files(root: bytes) -> Iterator[bytes]:
    """Yields the paths of all files and links below a folder. OSError passes."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=fail):
        links = [name for name in folders if os.path.islink(b"%s/%s" % (folder, name))]  # noqa: PTH114
        for name in names + links:
            yield os.path.relpath(b"%s/%s" % (folder, name), root)


def _problem_of_link(full: bytes, root: bytes) -> str:
    """Returns why a link does not pass, after all files were judged; empty if it passes."""
    target, top = os.path.realpath(full), os.path.realpath(root)
    if not os.path.exists(target):  # noqa: PTH110
        return "the link leads to nothing, or to a file in quarantine"
    return "" if (target + b"/").startswith(top + b"/") else f"the link leads out of {OUTPUT}"


def _problem(full: bytes, vetting: Vetting, job_folder: Path) -> str:
    """Returns why a file does not pass; empty if it passes."""
    size_bytes = os.stat(full).st_size  # noqa: PTH116
    if vetting.max_bytes is not None and size_bytes > vetting.max_bytes:
        return f"it has {size_bytes} bytes, and {vetting.max_bytes} are allowed"
    if vetting.kinds and not _is_of(full, vetting.kinds):
        return f"its content is not one of: {', '.join(vetting.kinds)}"
    return _objection(full, vetting.command, job_folder) if vetting.command else ""


def _is_of(full: bytes, kinds: tuple[str, ...]) -> bool:
    """Whether the content of a file is of one of these kinds."""
    with open(full, "rb") as file:  # noqa: PTH123 - the name may not be text
        head = file.read(16)
        if any(head.startswith(MAGIC[kind]) for kind in kinds if kind in MAGIC):
            return True
        if TEXT not in kinds:
            return False
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while chunk := file.read(CHUNK_BYTES):
                if _CONTROL.search(decoder.decode(chunk)):
                    return False
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        return True


def _objection(full: bytes, command: tuple[str, ...], job_folder: Path) -> str:
    """Returns why the command does not let a file pass; empty if it does."""
    program = str(job_folder.absolute() / command[0]) if "/" in command[0] else command[0]
    try:
        done = run.run(
            [program, *command[1:], os.fsdecode(full)], check=False, cwd=job_folder, timeout_s=COMMAND_TIMEOUT_S
        )
    except (KimboxError, OSError) as error:
        return f"the command that checks it cannot be run, or takes too long: {error}"
    return "" if done.ok else f"the command that checks it {run.describe_status(done.code)}"


def _move(path: bytes, root: bytes, quarantine: bytes) -> None:
    """Moves a file to the same path in the quarantine, which is private to the user."""
    os.makedirs(quarantine, mode=0o700, exist_ok=True)  # noqa: PTH103
    target = b"%s/%s" % (quarantine, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    os.rename(b"%s/%s" % (root, path), target)  # noqa: PTH104
