"""Parses LVM's text format, which metadata areas and vgcfgbackup(8) have, into Python data. Pure, and linear in time.

Grammar: LVM2, libdm/libdm-config.c (`_get_token`, `_eat_space`, `_section`, `_value`). Blanks and comments (`#` to the
end of the line) may be before every token. Forms that LVM reads and never writes are rejected: values without quotes,
keys with a slash, the same key twice, numbers with leading zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: A value of a key: a section, a list, a number or a text.
Value = dict[str, "Value"] | list[str | int] | str | int
Section = dict[str, Value]

#: Maximum number of tokens of a text. A metadata area of 1 MiB, LVM's default, has at most half as many.
MAX_TOKENS = 1_000_000

#: Maximum number of levels of sections. LVM has four: the volume group, `logical_volumes`, a volume, a segment.
MAX_DEPTH = 8

#: All quantifiers are possessive, so that the expression never goes back in a hostile text.
_TOKEN = re.compile(
    r"""
    (?P<blank> [ \t\n\v\f\r]++ | \#[^\n]*+ )
  | (?P<text>  "(?:[^"\\]|\\.)*+" | '[^']*+' )
  | (?P<mark>  [\[\]{}=,] )
  | (?P<word>  [^ \t\n\v\f\r\#"'\[\]{}=,]++ )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r'\\(["\\])')
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,18})")
_KEY = re.compile(r"[^/\x00-\x20\x7f]{1,256}")

#: A token: its kind (`text`, `mark`, `word`, `end`), its characters (of a text: without quotes), its index.
_Token = tuple[str, str, int]


class Malformed(ValueError):
    """A text is not in LVM's format. The message has line and reason, and no part of the text, which is untrusted.

    `fault` is a name of the reason, for callers and tests. Lines count from 1.
    """

    def __init__(self, fault: str, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.fault = fault
        self.line = line


def parse(text: str) -> Section:
    """Returns the sections and values of a text. Raises Malformed if it is not in LVM's format."""
    return _Parser(text).document()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.token = next(self.tokens)

    def fail(self, fault: str, reason: str) -> Malformed:
        return _malformed(self.text, self.token[2], fault, reason)

    def take(self) -> _Token:
        """Returns the current token and moves to the next one, except at the end."""
        token = self.token
        if token[0] != "end":
            self.token = next(self.tokens)
        return token

    def is_mark(self, mark: str) -> bool:
        return self.token[:2] == ("mark", mark)

    def document(self) -> Section:
        section = self.section(1)
        if self.token[0] != "end":
            raise self.fail("unexpected-brace", "} without {")
        return section

    def section(self, depth: int) -> Section:
        """Returns the keys and values up to the } of this section or the end of the text."""
        if depth > MAX_DEPTH:
            raise self.fail("too-deep", f"sections more than {MAX_DEPTH} levels deep")
        section: Section = {}
        while self.token[0] != "end" and not self.is_mark("}"):
            if self.token[0] == "mark" or not _KEY.fullmatch(self.token[1]):
                raise self.fail("no-key", "key expected")
            key = self.token[1]
            if key in section:
                raise self.fail("duplicate-key", "a section has the same key twice")
            self.take()
            section[key] = self.content(depth)
        return section

    def content(self, depth: int) -> Value:
        """Returns the value after a key: a section in braces, or a value after =."""
        if self.is_mark("{"):
            self.take()
            section = self.section(depth + 1)
            if not self.is_mark("}"):
                raise self.fail("missing-brace", "missing } of a section")
            self.take()
            return section
        if not self.is_mark("="):
            raise self.fail("no-assignment", "= or { expected after a key")
        self.take()
        return self.list_items() if self.is_mark("[") else self.scalar()

    def list_items(self) -> list[str | int]:
        self.take()
        items: list[str | int] = []
        while not self.is_mark("]"):
            items.append(self.scalar())
            if self.is_mark(","):
                self.take()
            elif not self.is_mark("]"):
                raise self.fail("bad-list", ", or ] expected in a list")
        self.take()
        return items

    def scalar(self) -> str | int:
        kind, text, _ = self.token
        if kind == "word" and not _NUMBER.fullmatch(text):
            raise self.fail("bad-value", "a value is neither a whole number nor a text in quotes")
        if kind not in ("text", "word"):
            raise self.fail("no-value", "value expected")
        self.take()
        return text if kind == "text" else int(text)


def _tokens(text: str) -> Iterator[_Token]:
    """Yields the tokens of a text. The last one is `end`: at the end of the text or at its first NUL."""
    end = text.find("\0")
    end = len(text) if end < 0 else end
    at = 0
    for _ in range(MAX_TOKENS + 1):
        match = _TOKEN.match(text, at, end)
        while match and match.lastgroup == "blank":
            at = match.end()
            match = _TOKEN.match(text, at, end)
        if match is None:
            break
        if match.lastgroup == "text":
            inside = match[0][1:-1]
            yield "text", _ESCAPED.sub(r"\1", inside) if match[0][0] == '"' else inside, at
        else:
            yield str(match.lastgroup), match[0], at
        at = match.end()
    else:
        raise _malformed(text, at, "too-many-tokens", f"more than {MAX_TOKENS} tokens")
    if at < end:
        raise _malformed(text, at, "open-quote", "missing closing quote of a text")

    yield "end", "", at


def _malformed(text: str, index: int, fault: str, reason: str) -> Malformed:
    return Malformed(fault, text.count("\n", 0, index) + 1, reason)
