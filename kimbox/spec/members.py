"""Several boxes in one spec: `boxes` maps names to specs or layers. Other keys of the file are a layer below each."""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from pathlib import Path

import attrs

from kimbox.errors import SpecError
from kimbox.spec import rules
from kimbox.spec.nodes import Fault, Node, Problems, shown
from kimbox.spec.parse import Budget, read_text, read_tree

#: Maximum number of boxes in a spec.
MAX_BOXES = 64


@attrs.frozen
class Member:
    """A box of a spec with several: its name, and the boxes that must be ready before it starts."""

    name: str
    needs: tuple[str, ...] = ()


def read_members(path: Path) -> tuple[Member, ...]:
    """Returns the boxes of a spec, each after those that it needs. Empty if the spec has no `boxes`.

    Raises SpecError, with every fault of names and `needs`. The content of the boxes is not checked, and neither is a
    file that cannot be parsed: `load_box` reports its faults.
    """
    tree = _tree_with_boxes(path)
    node = tree.get("boxes") if tree else None
    if tree is None or node is None:
        return ()
    problems = Problems()
    if not node.mapping or len(node.mapping) > MAX_BOXES:
        hint = "for example `boxes: {director: director.yaml, worker: worker.yaml}`"
        problems.add(node.mark, f"`boxes` maps 1 to {MAX_BOXES} names to specs or layers", hint, code="bad-value")
    if "name" in tree.mapping:
        message = "a spec with `boxes` has no `name`: each box has the name of its key"
        problems.add(tree.keys["name"], message, "remove it", code="conflicting-settings")
    members = [_member(name, entry, node, problems) for name, entry in node.mapping.items()]
    _check_networks(tree, node, problems)
    ordered = _in_order(members, node, problems)
    if problems.collected:
        raise SpecError(problems.collected, code="bad-spec")
    return ordered


def _tree_with_boxes(path: Path) -> Node | None:
    """Returns the tree of a spec that may have `boxes`. Most have none, and need not be parsed once more."""
    try:
        if "boxes" not in read_text(path):
            return None
    except SpecError:
        return None
    return read_tree(path, Problems(), Budget())


def _member(name: str, entry: Node, boxes: Node, problems: Problems) -> Member:
    try:
        rules.box_name(name)
    except Fault as fault:
        problems.add(boxes.keys[name], fault.message, fault.hint, code=fault.code)
    if not isinstance(entry.value, str | dict):
        hint = "for example `director: director.yaml`, or `director: {base: [director.yaml], memory: 1GiB}`"
        problems.add(
            entry.mark, f"the box {shown(name)} is neither the path of a spec nor a mapping", hint, code="wrong-type"
        )
    needs: list[str] = []
    listed = entry.get("needs")
    if listed is not None and not isinstance(listed.value, list):
        problems.add(listed.mark, "`needs` is a list of names of boxes", f"write [{listed.value}]", code="wrong-type")
    for item in listed.items if listed else ():
        if not isinstance(item.value, str) or item.value not in boxes.mapping:
            others = [other for other in boxes.mapping if other != name]
            known = f"there are: {', '.join(others)}" if others else None
            problems.add(item.mark, f"there is no box {shown(item.value)} in this spec", known, code="bad-value")
        elif item.value in needs:
            problems.add(item.mark, f"duplicate box {shown(item.value)}", code="duplicate")
        else:
            needs.append(item.value)
    return Member(name, tuple(needs))


def _check_networks(tree: Node, boxes: Node, problems: Problems) -> None:
    """Reports an address of a box that the spec does not have."""
    networks = tree.get("networks")
    for network in networks.mapping.values() if networks else ():
        addresses = network.get("addresses")
        for name in addresses.mapping if addresses else ():
            if addresses and name not in boxes.mapping:
                known = f"there are: {', '.join(boxes.mapping)}"
                problems.add(
                    addresses.keys[name], f"there is no box {shown(name)} in this spec", known, code="bad-value"
                )


def _in_order(members: Sequence[Member], boxes: Node, problems: Problems) -> tuple[Member, ...]:
    """Returns the boxes in the order of their needs, else in that of the file. Reports a cycle at its first box."""
    by_name = {member.name: member for member in members}
    try:
        names = list(graphlib.TopologicalSorter({m.name: m.needs for m in members}).static_order())
    except graphlib.CycleError as error:
        cycle = [str(name) for name in error.args[1]]
        message = f"these boxes need each other: {' -> '.join(reversed(cycle))}"
        node = boxes.mapping[cycle[0]].get("needs") or boxes
        problems.add(node.mark, message, "remove one of the `needs`", code="bad-value")
        return ()
    return tuple(by_name[name] for name in names)


def without_boxes(tree: Node) -> Node:
    """Returns the tree of a file without `boxes`: the layer that is below each of its boxes."""
    return tree.replace({key: child for key, child in tree.mapping.items() if key != "boxes"})


def layer_of(tree: Node, name: str) -> Node | None:
    """Returns the entry of a box as the tree of a layer, with the name of the box. None if there is no such box."""
    boxes = tree.get("boxes")
    entry = boxes.get(name) if boxes else None
    if boxes is None or entry is None:
        return None
    children, keys = dict(entry.mapping), dict(entry.keys)
    children.pop("needs", None)
    if isinstance(entry.value, str):
        children["base"] = Node([], entry.mark).replace([entry])
    children |= {"kimbox": Node(1, entry.mark), "name": Node(name, boxes.keys[name])}
    keys = {key: keys.get(key, boxes.keys[name]) for key in children}
    return Node({}, entry.mark).replace(children, keys)
