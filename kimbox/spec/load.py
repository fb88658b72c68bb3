"""Finds the spec for a command, and loads it as a Box."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import SpecError, StateError
from kimbox.log import log
from kimbox.spec import schema
from kimbox.spec.build import build
from kimbox.spec.layers import load_layers
from kimbox.spec.model import Box
from kimbox.spec.nodes import Mark, Problems, shown
from kimbox.spec.parse import Budget, read_tree
from kimbox.spec.settings import settings_of_image


def load_box(path: Path, settings: Sequence[str] = (), member: str | None = None) -> Box:
    """Reads a spec with its layers and checks all of it. Raises SpecError with every problem.

    `settings`: values that a command line has changed, see `kimbox.spec.settings`. `member`: the box, if the spec has
    several.
    """
    box = _load(path, settings, member)
    image_settings = settings_of_image(settings)
    if len(image_settings) == len(settings):
        return box
    return attrs.evolve(box, disk=_load(path, image_settings, member).disk, disk_bytes=box.disk.size_bytes)


def _load(path: Path, settings: Sequence[str], member: str | None) -> Box:
    """Reads a spec with all its settings, as those of its image."""
    problems = Problems()
    merged = load_layers(path, problems, settings, member)
    if merged is None:
        raise SpecError(problems.collected, code="bad-spec")
    faulty = merged.faulty | schema.check(merged.tree, problems, whole=merged.complete)
    box = build(schema.with_defaults(merged.tree), path, merged.files, problems, faulty)
    if member is None and (networks := merged.tree.get("networks")) and networks.mapping:
        hint = "write the boxes under `boxes` of this file"
        problems.add(networks.mark, "`networks` connects the boxes of a spec with `boxes`", hint, code="bad-value")
    if problems.collected:
        raise SpecError(problems.collected, code="bad-spec")
    return attrs.evolve(box, has_boot_key=merged.tree.get("boot") is not None, settings=tuple(settings), member=member)


def merged_spec(path: Path, settings: Sequence[str] = (), member: str | None = None) -> dict[str, Any]:
    """Returns a valid spec with its layers and settings as one mapping, without the defaults of the schema.

    It describes the image: a size of the disk that only the machine has is not in it.
    """
    merged = load_layers(path, Problems(), settings_of_image(settings), member)
    plain = merged.tree.plain() if merged else {}
    return {key: value for key, value in plain.items() if key != "base"}


def place(source: Path, *keys: str | int, member: str | None = None) -> Mark:
    """The place of the value at `keys` in a spec or its layers; that of the nearest key above it if it is missing."""
    merged = load_layers(source, Problems(), member=member) if source.exists() else None
    mark = Mark(str(source))
    for depth in range(len(keys) + 1 if merged else 0):
        node = merged.tree.get(*keys[:depth]) if merged else None
        mark = node.mark if node else mark
    return mark


def place_of_package(source: Path, name: str, member: str | None = None) -> Mark:
    """The place of a package in a spec or its layers; that of the list, or of the image, if it is not in the list."""
    merged = load_layers(source, Problems(), member=member) if source.exists() else None
    listed = merged.tree.get("image", "packages") if merged else None
    for item in listed.items if listed else []:
        if item.value == name:
            return item.mark
    return place(source, "image", "packages", member=member)


@attrs.frozen
class ShippedBox:
    """A box spec that comes with kimbox."""

    name: str
    description: str
    path: Path


def shipped_boxes() -> list[ShippedBox]:
    """Returns the boxes that come with kimbox, sorted by name."""
    boxes = []
    for path in sorted(paths.boxes_dir().glob("*.yaml")):
        tree = read_tree(path, Problems(), Budget())
        node = tree.get("description") if tree else None
        boxes.append(ShippedBox(path.stem, str(node.value) if node else "", path))
    return boxes


def find_box(name_or_path: str | None, folder: Path, file: Path | None) -> Path:
    """Returns the path of a spec: `file` (-f) if given; without a name, kimbox.yaml in `folder`; else a shipped box.

    Without kimbox.yaml in `folder`, it is the nearest one above (`paths.spec_file`), which is reported. A name with a
    slash, or with .yaml at its end, is a path. Raises StateError if the spec does not exist.
    """
    if file is not None:
        return _existing(file)
    if name_or_path is None:
        path = paths.spec_file(folder)
        if path is not None:
            if path != folder / paths.SPEC_NAME:
                log.info(f"using {path}")
            return path
        path = folder / paths.SPEC_NAME
        raise StateError(
            f"{paths.SPEC_NAME} not found in {folder.absolute()}, nor in a folder above it",
            code="spec-not-found",
            hint=f"`kimbox init` writes one; or name a shipped box: {', '.join(_names())}",
            fields={"path": str(path.absolute())},
        )
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _existing(folder / name_or_path)
    path = paths.boxes_dir() / f"{name_or_path}.yaml"
    if name_or_path in _names():
        return path
    guess = schema.guess(name_or_path, _names()) or "there are none"
    raise StateError(
        f"shipped box {shown(name_or_path)} not found",
        code="box-not-found",
        hint=f"{guess}{'' if guess.endswith('?') else '.'} Use -f for a file; `kimbox init` writes one",
        fields={"name": name_or_path},
    )


def _names() -> list[str]:
    return sorted(path.stem for path in paths.boxes_dir().glob("*.yaml"))


def _existing(path: Path) -> Path:
    if path.exists() or path.is_symlink():
        return path
    raise StateError(
        f"file {path} not found",
        code="spec-not-found",
        hint="`kimbox init` writes a kimbox.yaml to start from",
        fields={"path": str(path)},
    )
