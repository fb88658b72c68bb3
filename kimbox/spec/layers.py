"""Reads a spec and the layers below it, and merges them into one tree that keeps file and line of every value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.spec import members, schema, settings
from kimbox.spec.nodes import Fault, Mark, Node, Problems, shown
from kimbox.spec.parse import Budget, read_tree

#: Maximum depth of layers on layers, and maximum number of layers of a spec.
MAX_LAYER_DEPTH = 8
MAX_LAYERS = 64


@attrs.frozen
class Merged:
    """A spec merged with its layers."""

    tree: Node
    #: In the order of merging, the spec last.
    files: tuple[Path, ...]
    #: The ids of the nodes that a problem has been reported for.
    faulty: set[int]
    #: Whether every layer was read. If not, a missing key is not reported: it may be in the layer that was not read.
    complete: bool


def load_layers(
    spec: Path, problems: Problems, set_values: Sequence[str] = (), member: str | None = None
) -> Merged | None:
    """Reads a spec and all its layers and merges them, then the settings `set_values` (`settings.split`).

    `member`: the box, if the spec has several. Adds faults to `problems`. Returns None if no file was read.
    """
    loader = _Loader(spec, problems)
    trees = loader.visit(spec, ())
    if not trees:
        return None
    trees = loader.of_member(trees, member)
    merged = trees[0][1]
    for _, tree in trees[1:]:
        merged = merge(merged, tree)
    for tree in settings.trees(set_values, spec, problems, loader.budget):
        loader.faulty |= schema.check(tree, problems, whole=False)
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
        """Returns this file and all layers below it, in the order of merging. `above` has the files that led here."""
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

    def of_member(self, trees: list[tuple[Path, Node]], member: str | None) -> list[tuple[Path, Node]]:
        """Returns the trees of one box of a spec that has several: those of the file, then those of the box.

        Reports `boxes` in a layer, and a `member` that is missing, or given for a spec with one box.
        """
        path, root = trees[-1]
        self._refuse_boxes(trees[:-1])
        if member is None or "boxes" not in root.mapping:
            if (member is None) != ("boxes" not in root.mapping):
                self._misplaced(root.mark, "this spec has several boxes" if member is None else "this spec has one box")
            return [(file, members.without_boxes(tree)) for file, tree in trees]
        layer = members.layer_of(root, member)
        if layer is None:
            self._misplaced(root.keys["boxes"], f"there is no box {shown(member)} in this spec")
            return trees
        self.faulty |= schema.check(layer, self.problems, whole=False)
        below = [(file, members.without_boxes(tree)) for file, tree in trees]
        base = layer.get("base")
        layers = [
            pair for item in (base.items if base else []) for pair in self._below(item, path, (os.path.realpath(path),))
        ]
        self._refuse_boxes([*layers, (path, layer)])
        return [*below, *layers, (path, layer)]

    def _refuse_boxes(self, trees: list[tuple[Path, Node]]) -> None:
        for _, tree in trees:
            if "boxes" in tree.mapping:
                self._misplaced(tree.keys["boxes"], "a layer or a box cannot have `boxes`")

    def _misplaced(self, mark: Mark, message: str) -> None:
        self.problems.add(mark, message, "name one of its boxes, as in `kimbox up NAME`", code="bad-value")
        self.complete = False

    def _below(self, item: Node, path: Path, above: tuple[str, ...]) -> list[tuple[Path, Node]]:
        if not isinstance(item.value, str):
            return []
        self.count += 1
        try:
            layer = find_beside(item.value, path.parent, self.roots, "layer")
            if os.path.realpath(layer) in above:
                raise Fault(f"the layer {shown(item.value)} includes itself", code="layer-cycle")
            if len(above) > MAX_LAYER_DEPTH:
                raise Fault(f"layers are nested more than {MAX_LAYER_DEPTH} levels deep", code="too-complex")
            if self.count > MAX_LAYERS:
                raise Fault(f"a spec has at most {MAX_LAYERS} layers", code="too-complex")
        except Fault as fault:
            self.problems.add(item.mark, fault.message, fault.hint, code=fault.code)
            self.faulty.add(id(item))
            self.complete = False
            return []
        return self.visit(layer, above)


def find_beside(text: str, beside: Path, roots: tuple[Path, ...], kind: str) -> Path:
    """Returns the path of a file or folder that a spec names: in the folder `beside`, else among the shipped boxes.

    `kind` is for messages. Raises Fault if it does not exist, or is outside of `roots`, by `..` or by a symbolic link:
    a spec from elsewhere must not reach the user's other files.
    """
    if not text or "\0" in text or "\\" in text or text.startswith(("~", "-")):
        raise Fault(f"{shown(text)} is not a path of a {kind}", code="bad-path")
    if text.startswith("/"):
        message = f"{shown(text)} is an absolute path; the path of a {kind} is relative to the file that names it"
        hint = f"for a git repository of this machine, write {shown('file://' + text)}" if kind == "folder" else None
        raise Fault(message, hint, code="bad-path")
    inside = [os.path.realpath(root) for root in roots]
    candidates = [Path(os.path.normpath(folder / text)) for folder in dict.fromkeys((beside, paths.boxes_dir()))]
    is_outside = False
    for candidate in candidates:
        if not os.path.lexists(candidate):
            continue
        real = os.path.realpath(candidate)
        if any(real == root or real.startswith(root.rstrip("/") + "/") for root in inside):
            return candidate
        is_outside = True
    if is_outside or all(os.path.relpath(c, f).startswith("..") for c, f in zip(candidates, roots, strict=False)):
        message = f"{shown(text)} is outside of the folder of the spec"
        raise Fault(message, f"move the {kind} into the folder of the spec", code="outside-spec-folder")
    hint = "it is looked up beside this file, then among the shipped boxes"
    raise Fault(f"{kind} {shown(text)} not found", hint, code="file-not-found")


# The merge order, from the bottom up:
#   1. the defaults of the schema (kimbox.spec.schema.with_defaults)
#   2. the layers of `base`, first to last, each on top of its own layers
#   3. the spec itself
#   4. the settings of the machine (kimbox.spec.settings)
# A later value replaces an earlier one. How that works for each kind of value:
#   mapping                          key by key
#   provision, probes, forwards,     by name, description, guest port, mount point: an item with the same name is merged
#   mounts                           at its position, a new item is appended
#   image.packages                   a new package is appended
#   image                            another form (box, location or distribution) replaces all of it; another
#                                    distribution removes the suite below it
#   base                             not merged: each file has its own
#   all others, also other lists     replaced

#: Lists whose items have a name, and the key of the name.
NAMED_LISTS = {
    ("provision",): "name", ("probes",): "description", ("forwards",): "guest", ("mounts",): "mount_point",
}  # fmt: skip

#: Lists that are joined, each item once.
JOINED_LISTS = {("image", "packages")}


def merge(below: Node, above: Node, path: tuple[str, ...] = ()) -> Node:
    """Returns the tree `below` with the tree `above` merged into it, by the rules above. `path` is where both are."""
    if isinstance(below.value, dict) and isinstance(above.value, dict):
        return _merge_mappings(below, above, path)
    if isinstance(below.value, list) and isinstance(above.value, list):
        if path in NAMED_LISTS:
            return above.replace(_merge_named(below.value, above.value, NAMED_LISTS[path]))
        if path in JOINED_LISTS:
            known = {item.value for item in below.value if isinstance(item.value, str)}
            return above.replace(below.value + [i for i in above.value if _unhashable(i) or i.value not in known])
    return above


def _unhashable(node: Node) -> bool:
    return isinstance(node.value, dict | list)


def _merge_mappings(below: Node, above: Node, path: tuple[str, ...]) -> Node:
    children = dict(below.mapping)
    if path == ("image",):
        children = _compatible_image(children, above)
    for key, child in above.mapping.items():
        if key == "base" and not path:
            children[key] = child
        else:
            children[key] = merge(children[key], child, (*path, key)) if key in children else child
    if not path and "base" not in above.mapping:
        children.pop("base", None)
    keys = {key: above.keys.get(key) or below.keys[key] for key in children}
    return above.replace(children, keys)


def _compatible_image(below: dict[str, Node], above: Node) -> dict[str, Node]:
    """Returns the keys of the image below that are compatible with the image above."""
    if above.mapping and schema.image_form(below) != schema.image_form(above.mapping):
        return {}
    old, new = below.get("distribution"), above.get("distribution")
    if old and new and old.value != new.value:
        return {key: value for key, value in below.items() if key != "suite"}
    return below


def _merge_named(below: list[Node], above: list[Node], key: str) -> list[Node]:
    merged = list(below)
    positions: dict[str | int, int] = {}
    for index, item in enumerate(below):
        if (name := _name_of(item, key)) is not None:
            positions.setdefault(name, index)
    for item in above:
        name = _name_of(item, key)
        # Each position is used once, so that a name that a file has twice is not merged away, but reported later.
        position = positions.pop(name, None) if name is not None else None
        if position is None:
            merged.append(item)
        else:
            merged[position] = merge(merged[position], item, ("*",))
    return merged


def _name_of(item: Node, key: str) -> str | int | None:
    node = item.get(key)
    value = node.value if node else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
