"""A spec and the layers below it -> one tree, in which every value still knows the file and line it came from."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.spec import schema
from kimbox.spec.nodes import Fault, Node, Problems, shown
from kimbox.spec.parse import Budget, read_tree

#: How deep layers may stand on layers, and how many there may be in all.
MAX_LAYER_DEPTH = 8
MAX_LAYERS = 64


@attrs.frozen
class Merged:
    """A spec and its layers in one. `files` in the order of merging, the spec last; `faulty` are ids of bad nodes.

    `complete` says whether every layer could be read: if not, nothing can be said of what is missing.
    """

    tree: Node
    files: tuple[Path, ...]
    faulty: set[int]
    complete: bool


def load_layers(spec: Path, problems: Problems) -> Merged | None:
    """Reads a spec and all its layers and merges them. Faults go to `problems`; None if nothing could be read."""
    loader = _Loader(spec, problems)
    trees = loader.visit(spec, ())
    if not trees:
        return None
    merged = trees[0][1]
    for _, tree in trees[1:]:
        merged = merge(merged, tree)
    order = dict.fromkeys(Path(os.path.abspath(path)) for path, _ in trees)  # noqa: PTH100 - not through links
    return Merged(merged, tuple(order), loader.faulty, loader.complete)


class _Loader:
    def __init__(self, spec: Path, problems: Problems) -> None:
        self.problems = problems
        self.budget = Budget()
        self.faulty: set[int] = set()
        self.read: dict[str, Node | None] = {}
        self.roots = (spec.parent, paths.boxes_dir())
        self.count = 0
        self.complete = True

    def visit(self, path: Path, above: tuple[str, ...]) -> list[tuple[Path, Node]]:
        """This file and all below it, in the order of merging."""
        real = os.path.realpath(path)
        if real not in self.read:
            tree = self.read[real] = read_tree(path, self.problems, self.budget)
            if tree:
                self.faulty |= schema.check(tree, self.problems, whole=False)
        tree = self.read[real]
        if tree is None:
            self.complete = False
            return []
        trees: list[tuple[Path, Node]] = []
        base = tree.get("base")
        for item in base.items if base else []:
            trees += self._below(item, path, (*above, real))
        return [*trees, (path, tree)]

    def _below(self, item: Node, path: Path, above: tuple[str, ...]) -> list[tuple[Path, Node]]:
        if not isinstance(item.value, str):
            return []
        self.count += 1
        try:
            layer = find_beside(item.value, path.parent, self.roots, "layer")
            if os.path.realpath(layer) in above:
                raise Fault(f"the layer {shown(item.value)} stands on itself")
            if len(above) > MAX_LAYER_DEPTH:
                raise Fault(f"layers stand on layers more than {MAX_LAYER_DEPTH} deep")
            if self.count > MAX_LAYERS:
                raise Fault(f"a spec has at most {MAX_LAYERS} layers")
        except Fault as fault:
            self.problems.add(item.mark, fault.message, fault.hint)
            self.faulty.add(id(item))
            self.complete = False
            return []
        return self.visit(layer, above)


def find_beside(text: str, beside: Path, roots: tuple[Path, ...], what: str) -> Path:
    """A file or folder that a spec names: beside the file that names it, then among the shipped boxes.

    It never leaves `roots`, by `..` or by a symbolic link: a spec from elsewhere must not reach a user's other files.
    """
    if not text or "\0" in text or "\\" in text or text.startswith(("~", "-")):
        raise Fault(f"{shown(text)} is not a path of a {what}")
    if text.startswith("/"):
        raise Fault(f"{shown(text)} is an absolute path; a {what} is named relative to the file that names it")
    inside = [os.path.realpath(root) for root in roots]
    candidates = [Path(os.path.normpath(folder / text)) for folder in dict.fromkeys((beside, paths.boxes_dir()))]
    outside = False
    for candidate in candidates:
        if not os.path.lexists(candidate):
            continue
        real = os.path.realpath(candidate)
        if any(real == root or real.startswith(root.rstrip("/") + "/") for root in inside):
            return candidate
        outside = True
    if outside or all(os.path.relpath(c, f).startswith("..") for c, f in zip(candidates, roots, strict=False)):
        raise Fault(f"{shown(text)} leaves the folder of the spec", f"put the {what} beside the spec")
    raise Fault(f"there is no {what} {shown(text)}", "it is looked up beside this file, then among the shipped boxes")


# The merge order, from the bottom up:
#   1. the defaults of the schema (kimbox.spec.schema.with_defaults)
#   2. the layers of `base`, first to last, each on top of its own layers
#   3. the spec itself
# Later wins. What "wins" means for each kind of value:
#   mapping                          key by key
#   provision, probes, forwards      by name, description, guest port: an item of the same name is merged in its
#                                    place, a new one goes to the end
#   image.packages                   what is new goes to the end
#   image                            one form (box, location or distribution) replaces another as a whole; a change of
#                                    distribution drops the suite below it
#   base                             is not merged: each file has its own
#   all else, other lists included   is replaced

#: Lists whose items have a name, and the key that holds it.
NAMED_LISTS = {("provision",): "name", ("probes",): "description", ("forwards",): "guest"}

#: Lists that are joined.
JOINED_LISTS = {("image", "packages")}


def merge(below: Node, above: Node, path: tuple[str, ...] = ()) -> Node:
    """One tree laid over another, by the order stated above."""
    if isinstance(below.value, dict) and isinstance(above.value, dict):
        return _merge_mappings(below, above, path)
    if isinstance(below.value, list) and isinstance(above.value, list):
        if path in NAMED_LISTS:
            return above.replace(_merge_named(below.value, above.value, NAMED_LISTS[path]))
        if path in JOINED_LISTS:
            have = {item.value for item in below.value if isinstance(item.value, str)}
            return above.replace(below.value + [i for i in above.value if _unhashable(i) or i.value not in have])
    return above


def _unhashable(node: Node) -> bool:
    return isinstance(node.value, dict | list)


def _merge_mappings(below: Node, above: Node, path: tuple[str, ...]) -> Node:
    children = dict(below.mapping)
    if path == ("image",):
        children = _fitting_image(children, above)
    for key, child in above.mapping.items():
        if key == "base" and not path:
            children[key] = child
        else:
            children[key] = merge(children[key], child, (*path, key)) if key in children else child
    if not path and "base" not in above.mapping:
        children.pop("base", None)
    keys = {key: above.keys.get(key) or below.keys[key] for key in children}
    return above.replace(children, keys)


def _fitting_image(below: dict[str, Node], above: Node) -> dict[str, Node]:
    """What of the image below goes together with the one above."""
    if above.mapping and schema.image_form(below) != schema.image_form(above.mapping):
        return {}
    old, new = below.get("distribution"), above.get("distribution")
    if old and new and old.value != new.value:
        return {key: value for key, value in below.items() if key != "suite"}
    return below


def _merge_named(below: list[Node], above: list[Node], key: str) -> list[Node]:
    merged = list(below)
    places: dict[str | int, int] = {}
    for index, item in enumerate(below):
        if (name := _name_of(item, key)) is not None:
            places.setdefault(name, index)
    for item in above:
        name = _name_of(item, key)
        # Each place is taken once, so that a name that one file has twice stays twice, and is reported.
        place = places.pop(name, None) if name is not None else None
        if place is None:
            merged.append(item)
        else:
            merged[place] = merge(merged[place], item, ("*",))
    return merged


def _name_of(item: Node, key: str) -> str | int | None:
    node = item.get(key)
    value = node.value if node else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
