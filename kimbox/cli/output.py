"""Prints the result of a verb: text, or with --json one object.

{"kimbox": 1, "verb": "status", "result": {...}}
{"kimbox": 1, "verb": "up", "error": {"kind": ..., "code": ..., "message": ..., "hint": ..., "fields": {...},
                                       "exit_code": ...}}

`code` is a key of kimbox.codes.CODES. If a spec or lock is invalid, the error also has `problems`: each with file,
line, column, code, message and hint.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from kimbox.errors import KimboxError
from kimbox.settings import settings as settings  # verbs import it from here

#: The file name in an OSError of stdout.
STDOUT = "stdout"

#: Version of the form of the JSON object.
SHAPE = 1


def report(verb: str, result: dict[str, Any], text: str) -> None:
    """Prints a result on stdout."""
    if settings.json:
        _print_json({"kimbox": SHAPE, "verb": verb, "result": result})
    elif text:
        _print(text)


def report_error(error: KimboxError) -> None:
    """Prints an error: text on stderr, or with --json the object on stdout."""
    if settings.json:
        _print_json({"kimbox": SHAPE, "verb": settings.verb, "error": error.as_json()})
        return
    print(f"kimbox: error: {_safe(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {_safe(error.hint, indent=8)}", file=sys.stderr)


def printable(text: str) -> str:
    """Returns a line of untrusted text without the characters that control a terminal."""
    from kimbox.guest.events import printable as printable_line

    return printable_line(text)


def _safe(text: str, *, indent: int = 0) -> str:
    """Returns untrusted text of several lines without control characters; lines after the first are indented."""
    return ("\n" + " " * indent).join(printable(line) for line in text.splitlines())


def _print_json(value: dict[str, Any]) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False))


def _print(text: str) -> None:
    """Prints on stdout and flushes it. Raises OSError, with STDOUT as the file name, if it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from None


def table(rows: list[list[str]]) -> str:
    """Returns rows as text with aligned columns. The first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
