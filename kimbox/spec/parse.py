"""Parses a YAML file into a tree of nodes with places. Hostile input is refused quickly and in bounded memory.

Only the part of YAML that a spec needs is read: YAML 1.2, core types, one document, text as keys, each key once. There
are no tags (they could create objects), no merge keys (`base:` merges files, in a defined order), and no aliases that
contain themselves or expand to too many nodes.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
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

#: Maximum size of a spec, layer or lock.
MAX_BYTES = 1 << 20

#: Maximum length of a line. The YAML scanner is quadratic in the length of some tokens; up to here it is quick.
MAX_LINE_CHARACTERS = 1 << 16

#: Maximum number of nodes of a spec with all its layers, aliases expanded.
MAX_NODES = 50_000

#: Maximum levels of nesting, aliases expanded.
MAX_DEPTH = 50

#: Maximum number of digits of a number.
MAX_DIGITS = 18

#: Start of a line that git writes where two versions of a file conflict. No valid file has it.
CONFLICT = "<<<<<<< "

#: Hint for a file without content.
HINT_INIT = "`kimbox init` writes a spec to start from"

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
#: Refused characters: control characters, which could steer a terminal, and line breaks of YAML 1.1.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xef\xbb\xbf": "UTF-8 with a byte order mark",
}  # fmt: skip

#: Messages for a file that cannot be opened.
_UNREADABLE = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file",
    errno.EACCES: "you have no permission to read this file",
    errno.EPERM: "you have no permission to read this file",
    errno.ELOOP: "this is a loop of symbolic links",
    errno.EISDIR: "this is a folder, not a file",
    errno.ENAMETOOLONG: "this file name is too long",
    errno.ENXIO: "this is not a regular file",
}


@attrs.define
class Budget:
    """The number of nodes that may still be read: one budget for a spec and all its layers."""

    nodes: int = MAX_NODES


def read_tree(path: Path, problems: Problems, budget: Budget) -> Node | None:
    """Reads a spec or layer. Adds faults to `problems`. Returns None if the file cannot be parsed."""
    try:
        return parse(read_text(path), str(path), problems, budget)
    except SpecError as error:
        problems.collected.extend(error.problems)
        return None


def read_text(path: Path) -> str:
    """Returns the text of a spec, layer or lock. Raises SpecError if it is not a small regular file in UTF-8."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        data = files.read_bounded(path, limit_bytes=MAX_BYTES)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    except KimboxError as error:
        if error.code == "file-too-large":
            message = "this file is larger than 1 MiB, the maximum for a spec or lock"
            raise SpecError.at(path, message, code="file-too-large") from None
        raise SpecError.at(path, "this is not a regular file", code=error.code) from None
    return _decode(data, str(path))


def _unreadable(path: Path, error: OSError | ValueError) -> SpecError:
    number = error.errno if isinstance(error, OSError) else None
    message = _UNREADABLE.get(number or 0, f"this file cannot be read: {error}")
    if number in (errno.ENOENT, errno.ENOTDIR):
        return SpecError.at(path, message, code="file-not-found")
    hint = "name the file in it" if number == errno.EISDIR else None
    return SpecError.at(path, message, code="file-unreadable", hint=hint)


def _decode(data: bytes, name: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            message = f"this file is written in {encoding}"
            raise SpecError.at(name, message, code="bad-encoding", hint="save it as plain UTF-8")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8"), error.start)
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise SpecError.at(
            name, message, code="bad-encoding", line=line, column=column, hint="save it as UTF-8"
        ) from None
    if bad := _FORBIDDEN.search(text):
        line, column = _place(text, bad.start())
        character = "a NUL byte" if bad[0] == "\0" else f"the character U+{ord(bad[0]):04X}"
        message = f"{character} is not allowed in this file"
        raise SpecError.at(name, message, code="forbidden-character", line=line, column=column)
    for number, content in enumerate(text.split("\n"), 1):
        if content.startswith(CONFLICT):
            hint = f"edit it, or take one side with `git checkout --ours {shlex.quote(name)}` or `--theirs`"
            message = "this file has conflict markers of git: a merge was not completed"
            raise SpecError.at(name, message, code="merge-conflict", line=number, hint=hint)
        if len(content) > MAX_LINE_CHARACTERS:
            message = f"this line is longer than {MAX_LINE_CHARACTERS} characters"
            raise SpecError.at(name, message, code="too-complex", line=number)
    return text


def _place(text: str, index: int) -> tuple[int, int]:
    """Returns line and column of the character at `index`, both from 1."""
    before = text[:index].replace("\r\n", "\n").replace("\r", "\n")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def parse(text: str, name: str, problems: Problems, budget: Budget | None = None) -> Node:
    """Returns the tree of a YAML text. `name` is the name of the file, for messages.

    Raises SpecError if the rest of the text cannot be parsed; adds every other fault to `problems`.
    """
    return _Builder(text, name, problems, budget or Budget()).document()


class _Builder:
    """Builds the tree from the events of the YAML parser, and stops at the first limit that is exceeded."""

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
            raise self._error(place, f"not valid YAML: {_explain(error)}", _hint_for(error), code="bad-yaml") from None
        except SpecError:
            raise
        except Exception as error:  # ruamel.yaml raises ValueError and others for some malformed escapes
            message = f"not valid YAML near here: {shown(str(error))}"
            raise self._error(last, message, code="bad-yaml") from None

    def _mark(self, event: Any) -> Mark:
        return Mark(self.name, event.start_mark.line + 1, event.start_mark.column + 1)

    @staticmethod
    def _error(mark: Mark, message: str, hint: str | None = None, *, code: str) -> SpecError:
        return SpecError.at(mark.file, message, code=code, line=mark.line, column=mark.column, hint=hint)

    def document(self) -> Node:
        """Returns the tree of the only document of the text."""
        next(self.events)
        start = next(self.events)
        if isinstance(start, ev.StreamEndEvent):
            raise self._error(Mark(self.name), "this file is empty", HINT_INIT, code="not-a-mapping")
        if start.tags or start.version not in (None, (1, 2)):
            message, hint = "only YAML 1.2 without directives is supported", "remove the lines that start with %"
            raise self._error(Mark(self.name), message, hint, code="unsupported-yaml")
        root = self._node(next(self.events), 1, None)
        next(self.events)
        end = next(self.events)
        if not isinstance(end, ev.StreamEndEvent):
            message, hint = "a second document starts here", "keep one document in a file"
            raise self._error(self._mark(end), message, hint, code="unsupported-yaml")
        if not isinstance(root.value, dict):
            content = "a list" if isinstance(root.value, list) else "empty" if root.value is None else "a single value"
            message = f"a spec is a mapping of keys to values, and this file is {content}"
            raise self._error(root.mark, message, HINT_INIT, code="not-a-mapping")
        return root

    def _spend(self, mark: Mark, nodes: int) -> None:
        """Takes nodes from the budget. Raises SpecError if it is exceeded."""
        self.budget.nodes -= nodes
        if self.budget.nodes < 0:
            message = f"the spec has more than {MAX_NODES} nodes here, with all layers and aliases"
            raise self._error(mark, message, code="too-complex")

    def _check_depth(self, mark: Mark, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._error(mark, f"nested more than {MAX_DEPTH} levels deep", code="too-complex")

    def _node(self, event: Any, depth: int, key: Mark | None) -> Node:
        """Returns the node that starts with this event. An empty value has the place of its `key`."""
        mark = self._mark(event)
        if isinstance(event, ev.AliasEvent):
            return self._alias(event, mark, depth)
        self._spend(mark, 1)
        self._check_depth(mark, depth)
        if event.tag is not None:
            message, hint = f"tags such as {shown(event.tag)} are not allowed", "write the plain value"
            self.problems.add(mark, message, hint, code="unsupported-yaml")
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, ev.ScalarEvent):
            place = key if event.value == "" and event.style is None and key else mark
            value = self._scalar(event, mark)
            text = event.value if isinstance(value, int | float) else None
            node = Node(value, place, style=event.style, text=text)
        elif isinstance(event, ev.SequenceStartEvent):
            node = self._sequence(mark, depth)
        else:
            node = self._mapping(mark, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, mark: Mark, depth: int) -> Node:
        if event.anchor not in self.anchors:
            raise self._error(mark, f"the anchor {shown('&' + event.anchor)} is not defined above", code="bad-yaml")
        node = self.anchors[event.anchor]
        if node is None:
            message = f"the alias {shown('*' + event.anchor)} is inside its own anchor"
            raise self._error(mark, message, code="bad-yaml")
        self._spend(mark, node.size)
        self._check_depth(mark, depth + node.height - 1)
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
                message, hint = "merge keys (<<) are not supported", "put the shared part into a layer: base:"
                self.problems.add(place, message, hint, code="unsupported-yaml")
            elif not isinstance(key, str):
                self.problems.add(place, "a key must be text", "put it in quotes", code="unsupported-yaml")
            elif key in children:
                message, hint = f"duplicate key {shown(key)}", f"first in line {keys[key].line}"
                self.problems.add(place, message, hint, code="duplicate")
            else:
                children[key], keys[key] = value, place
        return Node({}, mark).replace(children, keys)

    def _scalar(self, event: Any, mark: Mark) -> Scalar:
        text: str = event.value
        if bad := _FORBIDDEN.search(text):
            message = f"the character U+{ord(bad[0]):04X} is not allowed in this file"
            self.problems.add(mark, message, code="forbidden-character")
            text = _FORBIDDEN.sub("?", text)
        if event.style is not None:
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self.problems.add(mark, f"a number has at most {MAX_DIGITS} digits", code="too-complex")
                return 0
            return _number(text)
        return text


def _number(text: str) -> int | float:
    if not _INT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _explain(error: MarkedYAMLError) -> str:
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
