"""Reads values of nodes, and reports each fault at its place. The modules that build the parts of a Box use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kimbox.spec import signing
from kimbox.spec.nodes import Fault, Node, Problems, shown

T = TypeVar("T")


class Reader:
    """Reads values from the merged tree of one spec."""

    def __init__(self, tree: Node, spec: Path, problems: Problems, faulty: set[int]) -> None:
        """`faulty` has the ids of the nodes that have a problem already: their values are not read."""
        self.tree = tree
        self.spec = spec
        self.problems = problems
        self.faulty = set(faulty)

    def fault(self, node: Node, message: str, hint: str | None = None, *, code: str) -> None:
        """Reports a fault at the place of a node."""
        self.faulty.add(id(node))
        self.problems.add(node.mark, message, hint, code=code)

    def is_sound(self, node: Node | None) -> bool:
        """Whether there is a node, and no fault has been reported for it."""
        return node is not None and id(node) not in self.faulty

    def text(self, node: Node | None, rule: Callable[[str], T], default: T) -> T:
        """Returns what `rule` returns for the text of a node; `default` if there is no text, or a fault in it."""
        if node is None or id(node) in self.faulty or not isinstance(node.value, str):
            return default
        try:
            return rule(node.value)
        except Fault as fault:
            self.fault(node, fault.message, fault.hint, code=fault.code)
            return default

    def number(self, node: Node | None) -> int:
        """Returns the whole number of a node; 0 if there is none, or a fault in it."""
        if node is None or id(node) in self.faulty or type(node.value) is not int:
            return 0
        return node.value

    def switch(self, node: Node | None) -> bool:
        """Returns the truth value of a node; False if there is none, or a fault in it."""
        return node is not None and id(node) not in self.faulty and node.value is True

    def refuse_duplicates(self, named: list[tuple[Node, str]], kind: str) -> None:
        """Reports every name that is in the list before. `kind` is for messages."""
        first_nodes: dict[str, Node] = {}
        for node, name in named:
            if not name or id(node) in self.faulty:
                continue
            if first := first_nodes.get(name):
                file = "" if first.mark.file == node.mark.file else f" of {first.mark.file}"
                hint = f"first in line {first.mark.line}{file}"
                self.fault(node, f"duplicate {kind} {shown(name)}", hint, code="duplicate")
            first_nodes.setdefault(name, node)

    def keys(self, node: Node | None) -> tuple[str, ...]:
        """Returns the public keys of a list, and of the files that it names, each once."""
        keys: dict[str, None] = {}
        no_keys: tuple[str, ...] = ()
        for item in node.items if node else ():
            rule = functools.partial(signing.keys, beside=Path(item.mark.file).parent, root=self.spec.parent)
            keys |= dict.fromkeys(self.text(item, rule, no_keys))
        return tuple(keys)
