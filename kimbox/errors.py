"""Every error that kimbox means to show.

    KimboxError                1   something went wrong, and the message says what
    ├── UsageError             2   the command line itself is wrong
    ├── SpecError              3   a spec, layer or lock is wrong: carries every Problem found
    ├── ImageError             1   building or fetching an image failed
    ├── GuestError             4   the guest did not boot, provision or answer as it should
    ├── StateError             5   not found, or not in a state that allows the verb
    ├── MissingToolError       6   a program that the host lacks
    └── Interrupted          130   Ctrl-C

Nothing below the entry point exits; it raises one of these. What is not one of these is a bug (exit code 70).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs


class KimboxError(Exception):
    """An expected failure: one message in plain words, maybe a hint what to do, and the exit code it stands for."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, Any]:
        """The error as it appears under `error` in the output of `--json`."""
        return {"kind": type(self).__name__, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class UsageError(KimboxError):
    """The command line asks for something that cannot be meant."""

    exit_code = 2


@attrs.frozen(order=True)
class Problem:
    """One fault in a file a person wrote. Lines and columns count from 1, as editors do."""

    file: str
    line: int
    column: int
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class SpecError(KimboxError):
    """A spec, layer or lock file does not hold; `problems` lists every fault, in order of file and position."""

    exit_code = 3

    def __init__(self, problems: list[Problem], *, hint: str | None = None) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.file, p.line, p.column, p.message))
        super().__init__("\n".join(map(str, self.problems)), hint=hint)

    @classmethod
    def at(
        cls, file: str | Path, message: str, *, line: int = 1, column: int = 1, hint: str | None = None
    ) -> SpecError:
        """One fault at one place."""
        return cls([Problem(str(file), line, column, message, hint)])

    def as_json(self) -> dict[str, Any]:
        return super().as_json() | {"problems": [attrs.asdict(p) for p in self.problems]}


class ImageError(KimboxError):
    """An image could not be built, fetched or read."""


class GuestError(KimboxError):
    """The guest failed: it did not boot, its provisioning stopped, or it answered with nonsense."""

    exit_code = 4


class StateError(KimboxError):
    """What was named does not exist, or its state does not allow the verb."""

    exit_code = 5


class MissingToolError(KimboxError):
    """A program that the host needs is not there."""

    exit_code = 6


class Interrupted(KimboxError):
    """The user stopped it."""

    exit_code = 130
