"""How a verb's result reaches the user: words, or with --json one object of a documented shape.

{"kimbox": 1, "verb": "status", "result": {...}}
{"kimbox": 1, "verb": "up", "error": {"kind": ..., "code": ..., "message": ..., "hint": ..., "fields": {...},
                                       "exit_code": ...}}

`code` is a key of kimbox.codes.CODES. Where a spec or lock is wrong, the error also has `problems`: each with file,
line, column, code, message and hint.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import attrs

from kimbox.errors import KimboxError

#: What stands for a file's name in an OSError of stdout.
STDOUT = "stdout"

#: Version of that shape.
SHAPE = 1


@attrs.define
class Settings:
    """The global options of this run."""

    json: bool = False
    #: --timeout, in seconds.
    timeout_s: float | None = None
    verb: str = ""
    #: What stands after `--`, which belongs to another program; None if there is no `--`.
    after: list[str] | None = None


settings = Settings()


def report(verb: str, result: dict[str, Any], text: str) -> None:
    """Prints a result on stdout."""
    if settings.json:
        _print_json({"kimbox": SHAPE, "verb": verb, "result": result})
    elif text:
        _print(text)


def report_error(error: KimboxError) -> None:
    """Prints an error: words on stderr, or the object on stdout."""
    if settings.json:
        _print_json({"kimbox": SHAPE, "verb": settings.verb, "error": error.as_json()})
        return
    print(f"kimbox: error: {_safe(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {_safe(error.hint, indent=8)}", file=sys.stderr)


def printable(text: str) -> str:
    """A line that may repeat a stranger's words, without what could steer a terminal."""
    from kimbox.guest.events import printable as safe

    return safe(text)


def _safe(text: str, *, indent: int = 0) -> str:
    """`printable` for text of several lines."""
    return ("\n" + " " * indent).join(printable(line) for line in text.splitlines())


def _print_json(value: dict[str, Any]) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False))


def _print(text: str) -> None:
    """Prints on stdout; an OSError names it, as one of a file does. What is refused once is not tried again later."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from None


def table(rows: list[list[str]]) -> str:
    """Rows as columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
