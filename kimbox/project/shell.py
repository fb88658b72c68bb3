"""Finds syntax errors of shell scripts, with the `-n` of the shell that would run them. Nothing of a script is run."""

from __future__ import annotations

import re
import time

import attrs

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.temporary import temporary_folder

#: Timeout of a shell that parses one script, in seconds. A script can be made so that this takes very long.
PARSE_TIMEOUT_S = 10.0

#: Interpreter of a script -> the shells of this host that can parse it, the best first. Debian's sh is dash.
SHELLS = {"sh": ("dash", "sh"), "dash": ("dash",), "bash": ("bash",)}

#: `script: 5: Syntax error: ...` of dash, `script: line 5: syntax error ...` of bash.
_MESSAGE = re.compile(r"[^:]*: (?:line )?(?P<line>\d{1,9}): (?P<text>.*)")
_SHEBANG = re.compile(r"#![ \t]*(?P<program>[^ \t\n]+)(?:[ \t]+(?P<rest>[^\n]*))?")


@attrs.frozen
class SyntaxFault:
    """A syntax error: the line in the script, from 1, and the message of the shell."""

    line: int
    text: str
    hint: str | None = None


class Deadline:
    """Limits the time of a number of checks together: a spec may have thousands of scripts."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s

    @property
    def left_s(self) -> float:
        """Seconds until the end; negative after it."""
        return self._end - time.monotonic()


def interpreter(script: str) -> str | None:
    """The name of the program that runs a script, by its first line: `sh` without one, None if that is malformed."""
    if not script.startswith("#!"):
        return "sh"
    match = _SHEBANG.match(script)
    if not match:
        return None
    name = match["program"].rpartition("/")[2]
    if name == "env":
        words = [word for word in (match["rest"] or "").split() if not word.startswith("-") and "=" not in word]
        return words[0].rpartition("/")[2] if words else None
    return name


def syntax_fault(script: str, deadline: Deadline) -> SyntaxFault | None:
    """The first syntax error of a script.

    None if there is none, and if it cannot be known: the script is not for a shell of SHELLS, no such shell is
    installed, or the time is over.
    """
    name = interpreter(script)
    shell = next(filter(run.which, SHELLS.get(name or "", ())), None)
    if shell is None or deadline.left_s <= 0:
        return None
    fault = _parse(shell, script, deadline)
    if fault and not script.startswith("#!") and run.which("bash") and _parse("bash", script, deadline) is None:
        return attrs.evolve(fault, hint="bash accepts it: write #!/bin/bash as the first line of the script")
    return fault


def _parse(shell: str, script: str, deadline: Deadline) -> SyntaxFault | None:
    with temporary_folder("kimbox-script-") as folder:
        (folder / "script").write_text(script, errors="surrogateescape", newline="")
        try:
            limit_s = max(0.1, min(PARSE_TIMEOUT_S, deadline.left_s))
            done = run.run([shell, "-n", "script"], cwd=folder, check=False, timeout_s=limit_s)
        except KimboxError:
            return None
    if done.code <= 0:  # a signal: the shell itself failed, for example by too deep a nesting
        return None
    last = script.count("\n") + (not script.endswith("\n"))
    for line in done.stderr.splitlines():
        if (match := _MESSAGE.fullmatch(line)) and "warning" not in match["text"]:
            text = match["text"].removeprefix("Syntax error: ").removeprefix("syntax error: ")
            return SyntaxFault(min(int(match["line"]), max(last, 1)), text)
    return None
