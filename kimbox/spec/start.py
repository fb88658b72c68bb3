"""Writes the first spec of a folder: a copy of a shipped box, with a name of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import attrs

from kimbox import files, paths
from kimbox.errors import StateError, UsageError
from kimbox.spec import rules
from kimbox.spec.load import find_box, load_box
from kimbox.spec.nodes import Fault

#: The first lines of a new spec: the schema for editors, and the command that writes the schema.
MODELINE = (
    "# yaml-language-server: $schema=kimbox.schema.json\n"
    "# (for completion in your editor: kimbox schema >kimbox.schema.json)\n"
)

_MODELINE = re.compile(r"\A# yaml-language-server:.*\n")
_NAME = re.compile(r"^name: .*$", re.MULTILINE)
#: Names that YAML 1.1 and 1.2 read as text without quotes: not 2048, 1e3, 2026-01-01, true, no or null.
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|y|n|null)\Z)[a-z][a-z0-9-]*")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")


@attrs.frozen
class Started:
    """The files that `start_spec` has written: the spec, and the folders that it names."""

    spec: Path
    name: str
    folders: tuple[Path, ...]


def start_spec(box_name: str, folder: Path, name: str | None = None) -> Started:
    """Writes kimbox.yaml into `folder`, as a copy of the shipped box `box_name`, with the folders that it names.

    The new box is called `name`; without one, after the folder. Raises StateError if any of these files exists, and
    UsageError for an invalid name; both before anything is written.
    """
    source = find_box(box_name, paths.boxes_dir(), None)
    box = load_box(source)
    target = folder / paths.SPEC_NAME
    name = _name_for(name, folder, box.name)
    inside = [Path(r.url).relative_to(source.parent) for r in box.repositories if r.is_folder]
    copies = {folder / path: source.parent / path for path in inside}
    for path in (target, *copies):
        if path.exists() or path.is_symlink():
            raise StateError(
                f"{path} exists, and `kimbox init` does not overwrite files",
                code="file-exists",
                hint="move it, or use another folder",
                fields={"path": str(path)},
            )
    text = rewrite(files.read_bounded(source).decode(), name)
    copied = []
    try:
        for copy, original in copies.items():
            copied.append(copy)
            shutil.copytree(original, copy, symlinks=True)
        files.write_atomic(target, text)
    except BaseException:
        for copy in copied:
            files.remove_tree(copy)
        raise
    return Started(target, name, tuple(copies))


def rewrite(text: str, name: str) -> str:
    """Returns the text of a shipped box as the spec of a box called `name`, with a schema that any editor finds."""
    text = _MODELINE.sub("", text)
    value = name if _PLAIN.fullmatch(name) else f'"{name}"'
    return MODELINE + _NAME.sub(f"name: {value}", text, count=1)


def _name_for(given: str | None, folder: Path, default: str) -> str:
    """Returns the name of the new box: `given`, else the name of the folder as a host name, else `default`."""
    if given is not None:
        try:
            return rules.box_name(given)
        except Fault as fault:
            raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
    from_folder = _NOT_IN_A_NAME.sub("-", folder.resolve().name.lower()).strip("-")[:63].strip("-")
    return from_folder or default
