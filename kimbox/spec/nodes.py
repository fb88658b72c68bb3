"""A YAML tree that has the file, line and column of every key and value, and the list of problems in it."""

from __future__ import annotations

import json
from typing import Any

import attrs

from kimbox.errors import Problem

Scalar = str | int | float | bool | None

#: A path into a tree: keys of mappings and indices of lists.
Path = tuple[str | int, ...]

#: Maximum number of problems that are reported: a file with more of them is not a spec.
MAX_PROBLEMS = 200

#: Maximum number of characters of a value that a message repeats.
SHOWN_CHARACTERS = 60


#: Name of the file in the places of a setting of the command line.
SETTING_FILE = "--set"


@attrs.frozen
class Mark:
    """A place in a file. Line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1


@attrs.frozen(eq=False)
class Node:
    """A value and its place in a file."""

    value: Scalar | dict[str, Node] | list[Node]
    mark: Mark
    #: Of a mapping: the place of each key.
    keys: dict[str, Mark] = attrs.field(factory=dict)
    #: Number of nodes in this tree, and number of levels, both with every alias expanded.
    size: int = 1
    height: int = 1
    #: Of a scalar in a file: the YAML style of the text (`|`, `>`, a quote); None for a plain one.
    style: str | None = None
    #: Of a number: its text in the file. `1.10` and `1.1` are the same number, and two names.
    text: str | None = None

    @property
    def mapping(self) -> dict[str, Node]:
        """Returns the value if it is a mapping, else an empty mapping."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """Returns the value if it is a list, else an empty list."""
        return self.value if isinstance(self.value, list) else []

    def get(self, *path: str | int) -> Node | None:
        """Returns the node at that path below this node; None if there is none."""
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
        """Returns a node at the same place with another content."""
        children = value.values() if isinstance(value, dict) else value
        size = 1 + sum(child.size for child in children)
        height = 1 + max((child.height for child in children), default=0)
        return Node(value, self.mark, self.keys if keys is None else keys, size, height)

    def plain(self) -> Any:
        """Returns the tree as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def from_plain(value: Any, mark: Mark) -> Node:
    """Returns a tree of dicts, lists and scalars, every node at the same place. The defaults of the schema need it."""
    if isinstance(value, dict):
        children = {str(key): from_plain(child, mark) for key, child in value.items()}
        return Node({}, mark).replace(children, dict.fromkeys(children, mark))
    if isinstance(value, list):
        return Node([], mark).replace([from_plain(child, mark) for child in value])
    return Node(value, mark)


class Problems:
    """Collects problems, so that one run reports all of them."""

    def __init__(self) -> None:
        self.collected: list[Problem] = []

    def add(self, mark: Mark, message: str, hint: str | None = None, *, code: str) -> None:
        """Adds a problem. Does nothing if the limit is reached.

        The file of a setting is in the folder of the spec, for the paths in its value, and shown without it.
        """
        if not self.full:
            file = SETTING_FILE if mark.file.endswith(f"/{SETTING_FILE}") else mark.file
            self.collected.append(Problem(file, mark.line, mark.column, message, hint, code=code))

    @property
    def full(self) -> bool:
        """Whether the limit of reported problems is reached."""
        return len(self.collected) >= MAX_PROBLEMS


def shown(value: Any) -> str:
    """Returns a value as a message shows it: in backquotes, short, on one line, without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = json.dumps(text[: SHOWN_CHARACTERS + 1], ensure_ascii=False)[1:-1].replace('\\"', '"')
    text = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in text)
    return f"`{text[:SHOWN_CHARACTERS]}...`" if len(text) > SHOWN_CHARACTERS else f"`{text}`"


def describe(value: Any) -> str:
    """Returns the type of a value in words, and a scalar value itself."""
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
    """One value is invalid. The function that knows its place turns the fault into a Problem, or into a UsageError.

    `code` is a key of `kimbox.codes.CODES`.
    """

    code = "bad-value"

    def __init__(self, message: str, hint: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code
