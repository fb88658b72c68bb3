"""Bytes of a YAML file -> a tree of nodes with places. Hostile input is refused quickly and in bounded memory.

Only what a spec needs is read: YAML 1.2, core types, one document, keys of text, each key once. No tags (they would
build objects), no merge keys (`base:` does that, with a stated order), no aliases that recurse or multiply.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml import events as ev
from ruamel.yaml.error import MarkedYAMLError

from kimbox import files
from kimbox.errors import KimboxError, SpecError
from kimbox.spec.nodes import Mark, Node, Problems, Scalar, shown

#: A spec is written by hand; a larger file is something else.
MAX_BYTES = 1 << 20

#: The YAML scanner is quadratic in the length of some tokens; a line of this length still costs it nothing.
MAX_LINE_CHARACTERS = 1 << 16

#: Nodes of a spec and all its layers, aliases expanded.
MAX_NODES = 50_000

#: Levels of nesting, aliases expanded.
MAX_DEPTH = 50

#: Digits of a number; no number of a spec comes near.
MAX_DIGITS = 18

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
#: What no spec may hold: control characters (a terminal would obey them), and what YAML 1.1 took for line breaks.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xef\xbb\xbf": "UTF-8 with a byte order mark",
}  # fmt: skip
_UNREADABLE = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file",
    errno.EACCES: "this file may not be read by you",
    errno.EPERM: "this file may not be read by you",
    errno.ELOOP: "this is a loop of symbolic links",
    errno.EISDIR: "this is a folder, not a file",
    errno.ENAMETOOLONG: "this file name is too long",
    errno.ENXIO: "this is not a regular file",
}


@attrs.define
class Budget:
    """How many nodes may still be read: one budget for a spec and all its layers."""

    nodes: int = MAX_NODES


def read_tree(path: Path, problems: Problems, budget: Budget) -> Node | None:
    """Reads a spec or layer. Faults go to `problems`; None if there is nothing to go on with."""
    try:
        return parse(read_text(path), str(path), problems, budget)
    except SpecError as error:
        problems.found.extend(error.problems)
        return None


def read_text(path: Path) -> str:
    """The text of a spec or layer file. Raises SpecError, in words, for all that is not a small UTF-8 text file."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        data = files.read_bounded(path, limit_bytes=MAX_BYTES)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        message = _UNREADABLE.get(code or 0, f"this file cannot be read: {error}")
        raise SpecError.at(path, message) from None
    except KimboxError as error:
        if error.code == "file-too-large":
            raise SpecError.at(path, "this file is larger than 1 MiB, so it is no spec") from None
        raise SpecError.at(path, "this is not a regular file") from None
    return _decode(data, str(path))


def _decode(data: bytes, name: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise SpecError.at(name, f"this file is written in {encoding}", hint="save it as plain UTF-8")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8"), error.start)
        raise SpecError.at(
            name, f"byte 0x{data[error.start]:02x} is not UTF-8", line=line, column=column, hint="save it as UTF-8"
        ) from None
    if bad := _FORBIDDEN.search(text):
        line, column = _place(text, bad.start())
        what = "a NUL byte" if bad[0] == "\0" else f"the character U+{ord(bad[0]):04X}"
        raise SpecError.at(name, f"{what} has no place in a spec", line=line, column=column)
    for number, content in enumerate(text.split("\n"), 1):
        if len(content) > MAX_LINE_CHARACTERS:
            message = f"this line is longer than {MAX_LINE_CHARACTERS} characters"
            raise SpecError.at(name, message, line=number)
    return text


def _place(text: str, index: int) -> tuple[int, int]:
    before = text[:index].replace("\r\n", "\n").replace("\r", "\n")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def parse(text: str, name: str, problems: Problems, budget: Budget | None = None) -> Node:
    """The tree of a YAML text. Raises SpecError where reading on makes no sense; lesser faults go to `problems`."""
    return _Builder(text, name, problems, budget or Budget()).document()


class _Builder:
    """Builds the tree from the parser's events, and stops as soon as a limit is passed."""

    def __init__(self, text: str, name: str, problems: Problems, budget: Budget) -> None:
        self.name = name
        self.problems = problems
        self.budget = budget
        self.anchors: dict[str, Node | None] = {}
        self.events = self._events(text)

    def _events(self, text: str) -> Iterator[Any]:
        last = Mark(self.name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for event in YAML(typ="safe", pure=True).parse(text):
                    last = self._mark(event)
                    yield event
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Mark(self.name, mark.line + 1, mark.column + 1) if mark else last
            raise self._stop(place, f"not valid YAML: {_in_words(error)}", _hint_for(error)) from None
        except SpecError:
            raise
        except Exception as error:  # the scanner is not ours: on some malformed escapes it raises what it likes
            raise self._stop(last, f"not valid YAML near here: {shown(str(error))}") from None

    def _mark(self, event: Any) -> Mark:
        return Mark(self.name, event.start_mark.line + 1, event.start_mark.column + 1)

    @staticmethod
    def _stop(mark: Mark, message: str, hint: str | None = None) -> SpecError:
        return SpecError.at(mark.file, message, line=mark.line, column=mark.column, hint=hint)

    def document(self) -> Node:
        """The one document of the text."""
        next(self.events)
        start = next(self.events)
        if isinstance(start, ev.StreamEndEvent):
            raise self._stop(Mark(self.name), "this file is empty", "`kimbox init` writes a spec to start from")
        if start.tags or start.version not in (None, (1, 2)):
            raise self._stop(
                Mark(self.name), "a spec is YAML 1.2 without directives", "remove the lines that start with %"
            )
        root = self._node(next(self.events), 1, None)
        next(self.events)
        more = next(self.events)
        if not isinstance(more, ev.StreamEndEvent):
            raise self._stop(self._mark(more), "a second document starts here", "a spec is one document")
        if not isinstance(root.value, dict):
            what = "a list" if isinstance(root.value, list) else "empty" if root.value is None else "a single value"
            hint = "`kimbox init` writes a spec to start from"
            raise self._stop(root.mark, f"a spec is a mapping of keys to values, and this file is {what}", hint)
        return root

    def _spend(self, mark: Mark, nodes: int) -> None:
        self.budget.nodes -= nodes
        if self.budget.nodes < 0:
            raise self._stop(mark, f"the spec has more than {MAX_NODES} nodes here, layers and aliases counted")

    def _node(self, event: Any, depth: int, key: Mark | None) -> Node:
        mark = self._mark(event)
        if isinstance(event, ev.AliasEvent):
            return self._alias(event, mark, depth)
        self._spend(mark, 1)
        if depth > MAX_DEPTH:
            raise self._stop(mark, f"nested more than {MAX_DEPTH} levels deep")
        if event.tag is not None:
            self.problems.add(mark, f"tags such as {shown(event.tag)} are not allowed", "write the plain value")
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, ev.ScalarEvent):
            node = Node(self._scalar(event, mark), key if event.value == "" and event.style is None and key else mark)
        elif isinstance(event, ev.SequenceStartEvent):
            node = self._sequence(mark, depth)
        else:
            node = self._mapping(mark, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, mark: Mark, depth: int) -> Node:
        if event.anchor not in self.anchors:
            raise self._stop(mark, f"there is no anchor {shown('&' + event.anchor)} above")
        node = self.anchors[event.anchor]
        if node is None:
            raise self._stop(mark, f"the alias {shown('*' + event.anchor)} stands inside its own anchor")
        self._spend(mark, node.size)
        if depth + node.height - 1 > MAX_DEPTH:
            raise self._stop(mark, f"nested more than {MAX_DEPTH} levels deep")
        return node

    def _sequence(self, mark: Mark, depth: int) -> Node:
        children = []
        while not isinstance(event := next(self.events), ev.SequenceEndEvent):
            children.append(self._node(event, depth + 1, None))
        return Node([], mark).replace(children)

    def _mapping(self, mark: Mark, depth: int) -> Node:
        children: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        while not isinstance(event := next(self.events), ev.MappingEndEvent):
            place = self._mark(event)
            key_node = self._node(event, depth + 1, None)
            value = self._node(next(self.events), depth + 1, place)
            key = key_node.value
            if key == "<<" and getattr(event, "style", None) is None:
                self.problems.add(
                    place, "merge keys (<<) are not part of a spec", "put what is shared in a layer: base:"
                )
            elif not isinstance(key, str):
                self.problems.add(place, "a key is text, and this is not", "put it in quotes")
            elif key in children:
                first = keys[key]
                self.problems.add(
                    place, f"the key {shown(key)} is here for the second time", f"first in line {first.line}"
                )
            else:
                children[key], keys[key] = value, place
        return Node({}, mark).replace(children, keys)

    def _scalar(self, event: Any, mark: Mark) -> Scalar:
        text: str = event.value
        if bad := _FORBIDDEN.search(text):
            self.problems.add(mark, f"the character U+{ord(bad[0]):04X} has no place in a spec")
            text = _FORBIDDEN.sub("?", text)
        if event.style is not None:
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self.problems.add(mark, f"a number has at most {MAX_DIGITS} digits")
                return 0
            return _number(text)
        return text


def _number(text: str) -> int | float:
    if not _INT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _in_words(error: MarkedYAMLError) -> str:
    problem = (error.problem or error.context or "the structure is broken").strip().splitlines()[0]
    context = (error.context or "").strip()
    return shown(f"{problem}, {context}" if context and context != problem else problem).strip("`")


def _hint_for(error: MarkedYAMLError) -> str | None:
    problem = error.problem or ""
    if "\\t" in problem:
        return "indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return "check the indentation, and put text that holds `: ` in quotes"
    return None
