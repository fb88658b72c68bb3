"""Prints the result of a verb: text, or with --json one object.

{"kimbox": 1, "verb": "status", "result": {...}}
{"kimbox": 1, "verb": "up", "error": {"kind": ..., "code": ..., "message": ..., "hint": ..., "fields": {...},
                                       "exit_code": ...}}

`code` is a key of kimbox.codes.CODES. If a spec or lock is invalid, the error also has `problems`: each with file,
line, column, code, message and hint.
"""

from __future__ import annotations

import codecs
import json
import sys
from typing import Any

from kimbox.errors import KimboxError
from kimbox.log import printable as printable  # verbs import it from here
from kimbox.log import printable_lines
from kimbox.settings import settings as settings  # verbs import it from here

#: The file name in an OSError of stdout.
STDOUT = "stdout"

#: Version of the form of the JSON object.
SHAPE = 1


def report(verb: str, result: dict[str, Any], text: str, *, is_file: bool = False) -> None:
    """Prints a result on stdout, without characters that control a terminal.

    `is_file`: the text is the content of a file, so it is only changed if stdout is a terminal.
    """
    if settings.json:
        _print_json({"kimbox": SHAPE, "verb": verb, "result": result})
    elif text:
        is_terminal = sys.stdout.isatty()
        _print(text if is_file and not is_terminal else printable_lines(text, keep_bytes=not is_terminal))


def report_error(error: KimboxError) -> None:
    """Prints an error: text on stderr, or with --json the object on stdout."""
    if settings.json:
        _print_json({"kimbox": SHAPE, "verb": settings.verb, "error": error.as_json()})
        return
    print(f"kimbox: error: {printable_lines(error.message.rstrip())}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {printable_lines(error.hint.rstrip(), indent=' ' * 8)}", file=sys.stderr)


def encode_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler of stdout: writes bytes of file names unchanged, and escapes what the locale cannot encode.

    The output of `kimbox build`, `ssh-config` and others is read by programs, which need the path as it is.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in text):
        return text.encode("ascii", "surrogateescape"), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error("kimbox.bytes", encode_bytes)


def _print_json(value: dict[str, Any]) -> None:
    _print(json_text(value))


def json_text(value: dict[str, Any]) -> str:
    """Returns a value as JSON that can be encoded and printed.

    Characters that are not printable, such as those of C1, and bytes of file names that are not valid text are escaped.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if not text.replace("\n", "").isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    return text


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
