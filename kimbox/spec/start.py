"""A spec to start from: a shipped box, rewritten so that it stands in a folder of its own."""

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

#: What an editor reads, and the line that tells a person where that file comes from.
MODELINE = (
    "# yaml-language-server: $schema=kimbox.schema.json\n"
    "# (for completion in your editor: kimbox schema >kimbox.schema.json)\n"
)

_MODELINE = re.compile(r"\A# yaml-language-server:.*\n")
_NAME = re.compile(r"^name: .*$", re.MULTILINE)
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")


@attrs.frozen
class Started:
    """What was written: the spec, and the folders that it names."""

    spec: Path
    name: str
    folders: tuple[Path, ...]


def start_spec(box_name: str, folder: Path, name: str | None = None) -> Started:
    """Writes kimbox.yaml into `folder`, from a shipped box. Raises StateError before anything is overwritten."""
    source = find_box(box_name, paths.boxes_dir(), None)
    box = load_box(source)
    target = folder / paths.SPEC_NAME
    name = _name_for(name, folder, box.name)
    inside = [Path(r.url).relative_to(source.parent) for r in box.repositories if r.is_folder]
    copies = {folder / path: source.parent / path for path in inside}
    for path in (target, *copies):
        if path.exists() or path.is_symlink():
            raise StateError(f"{path} exists, and init overwrites nothing", hint="move it away, or use another folder")
    text = rewrite(files.read_bounded(source).decode(), name)
    made = []
    try:
        for copy, original in copies.items():
            made.append(copy)
            shutil.copytree(original, copy, symlinks=True)
        files.write_atomic(target, text)
    except BaseException:
        for copy in made:
            files.remove_tree(copy)
        raise
    return Started(target, name, tuple(copies))


def rewrite(text: str, name: str) -> str:
    """The text of a shipped box as the spec of another: its own name, and a schema that any editor can find."""
    text = _MODELINE.sub("", text)
    return MODELINE + _NAME.sub(f"name: {name}", text, count=1)


def _name_for(wanted: str | None, folder: Path, otherwise: str) -> str:
    if wanted is not None:
        try:
            return rules.box_name(wanted)
        except Fault as fault:
            raise UsageError(fault.message, hint=fault.hint) from None
    slug = _NOT_IN_A_NAME.sub("-", folder.resolve().name.lower()).strip("-")[:63].strip("-")
    return slug or otherwise
