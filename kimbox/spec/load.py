"""The way in: the file a verb means, and the Box it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import SpecError, StateError
from kimbox.spec import schema
from kimbox.spec.build import build
from kimbox.spec.layers import load_layers
from kimbox.spec.model import Box
from kimbox.spec.nodes import Problems, shown
from kimbox.spec.parse import Budget, read_tree


def load_box(path: Path) -> Box:
    """Reads a spec with its layers and checks all of it. Raises SpecError with every fault there is."""
    problems = Problems()
    merged = load_layers(path, problems)
    if merged is None:
        raise SpecError(problems.found)
    faulty = merged.faulty | schema.check(merged.tree, problems, whole=merged.complete)
    box = build(schema.with_defaults(merged.tree), path, merged.files, problems, faulty)
    if problems.found:
        raise SpecError(problems.found)
    return box


def merged_spec(path: Path) -> dict[str, Any]:
    """A sound spec as one mapping: with its layers, without what is a default."""
    merged = load_layers(path, Problems())
    plain = merged.tree.plain() if merged else {}
    return {key: value for key, value in plain.items() if key != "base"}


@attrs.frozen
class ShippedBox:
    """A box spec that comes with kimbox."""

    name: str
    description: str
    path: Path


def shipped_boxes() -> list[ShippedBox]:
    """The boxes that come with kimbox, by name."""
    boxes = []
    for path in sorted(paths.boxes_dir().glob("*.yaml")):
        tree = read_tree(path, Problems(), Budget())
        node = tree.get("description") if tree else None
        boxes.append(ShippedBox(path.stem, str(node.value) if node else "", path))
    return boxes


def find_box(name_or_path: str | None, folder: Path, file: Path | None) -> Path:
    """The spec a verb means: `file` (-f) if given; without a name the kimbox.yaml of `folder`; else a shipped box.

    A name with a slash or a .yaml at its end is a path. Raises StateError if there is no such spec.
    """
    if file is not None:
        return _existing(file)
    if name_or_path is None:
        path = folder / paths.SPEC_NAME
        if path.exists() or path.is_symlink():
            return path
        raise StateError(
            f"there is no {paths.SPEC_NAME} in {folder.absolute()}",
            hint=f"`kimbox init` writes one; or name a shipped box: {', '.join(_names())}",
        )
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _existing(folder / name_or_path)
    path = paths.boxes_dir() / f"{name_or_path}.yaml"
    if name_or_path in _names():
        return path
    guess = schema.guess(name_or_path, _names()) or "there are none"
    raise StateError(
        f"there is no shipped box {shown(name_or_path)}",
        hint=f"{guess}{'' if guess.endswith('?') else '.'} A file is named with -f, and `kimbox init` writes one",
    )


def _names() -> list[str]:
    return sorted(path.stem for path in paths.boxes_dir().glob("*.yaml"))


def _existing(path: Path) -> Path:
    if path.exists() or path.is_symlink():
        return path
    raise StateError(f"there is no file {path}", hint="`kimbox init` writes a kimbox.yaml to start from")
