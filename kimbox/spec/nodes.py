"""A YAML tree whose every key and value knows where it was written, and the list of faults found in it."""

from __future__ import annotations

import json
from typing import Any

import attrs

from kimbox.errors import Problem

Scalar = str | int | float | bool | None

#: A path into a tree: keys of mappings and indices of lists.
Path = tuple[str | int, ...]

#: No more faults than this are reported; a file with more of them is no spec.
MAX_PROBLEMS = 200

#: Characters of a user's own text that a message repeats.
SHOWN_CHARACTERS = 60


@attrs.frozen
class Mark:
    """A place in a file. Line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1


@attrs.frozen(eq=False)
class Node:
    """A value and its place.

    `keys` are the places of a mapping's keys; `size` and `height` tell how far it expands.
    """

    value: Scalar | dict[str, Node] | list[Node]
    mark: Mark
    keys: dict[str, Mark] = attrs.field(factory=dict)
    size: int = 1
    height: int = 1

    @property
    def mapping(self) -> dict[str, Node]:
        """The value as a mapping; empty if it is none."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The value as a list; empty if it is none."""
        return self.value if isinstance(self.value, list) else []

    def get(self, *path: str | int) -> Node | None:
        """The node below at that path, if there is one."""
        node: Node | None = self
        for step in path:
            if node is None:
                return None
            if isinstance(step, int):
                node = node.items[step] if step < len(node.items) else None
            else:
                node = node.mapping.get(step)
        return node

    def replace(self, value: dict[str, Node] | list[Node], keys: dict[str, Mark] | None = None) -> Node:
        """The same place with another content."""
        children = value.values() if isinstance(value, dict) else value
        size = 1 + sum(child.size for child in children)
        height = 1 + max((child.height for child in children), default=0)
        return Node(value, self.mark, self.keys if keys is None else keys, size, height)

    def plain(self) -> Any:
        """The tree as ordinary Python data."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def from_plain(value: Any, mark: Mark) -> Node:
    """Ordinary data as a tree, all of it at one place: how the schema's defaults enter a spec."""
    if isinstance(value, dict):
        children = {str(key): from_plain(child, mark) for key, child in value.items()}
        return Node({}, mark).replace(children, dict.fromkeys(children, mark))
    if isinstance(value, list):
        return Node([], mark).replace([from_plain(child, mark) for child in value])
    return Node(value, mark)


class Problems:
    """Collects faults, so that all of them are told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, mark: Mark, message: str, hint: str | None = None) -> None:
        """Notes one fault."""
        if not self.full:
            self.found.append(Problem(mark.file, mark.line, mark.column, message, hint))

    @property
    def full(self) -> bool:
        """Whether so much is wrong that looking further helps nobody."""
        return len(self.found) >= MAX_PROBLEMS


def shown(value: Any) -> str:
    """A value as a message repeats it: short, on one line, without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = json.dumps(text[: SHOWN_CHARACTERS + 1], ensure_ascii=False)[1:-1].replace('\\"', '"')
    text = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in text)
    return f"`{text[:SHOWN_CHARACTERS]}...`" if len(text) > SHOWN_CHARACTERS else f"`{text}`"


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the truth value {shown(value)}"
    if isinstance(value, int | float):
        return f"the number {shown(value)}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return "a mapping" if isinstance(value, dict) else "a list"


class Fault(Exception):
    """What is wrong with one value, in words; whoever knows its place turns it into a Problem."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
