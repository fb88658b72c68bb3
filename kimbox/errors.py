"""The errors that kimbox reports to its users.

    class                 exit  code of its own   when
    KimboxError              1  failed            anything that no other class describes (or by code, `EXIT_CODES`)
    ├── UsageError           2  usage             the command line is wrong
    ├── SpecError            3  bad-spec          a spec, layer or lock is wrong; `problems` lists every fault
    ├── ImageError           1  image-failed      an image could not be built, downloaded or read
    ├── GuestError           4  guest-failed      the guest did not boot, provision or answer as expected
    ├── StateError           5  wrong-state       not found, or in a state that does not allow the command
    ├── MissingToolError     6  missing-tool      a program is missing on the host
    └── Interrupted        130  interrupted       Ctrl-C

The exit code is the kind of error, for shell scripts. The error code (`box-not-found`) is what failed, for callers: it
is stable, and kimbox/codes.py lists every code. The message is for people, and its wording may change.

Only kimbox/__main__.py and kimbox/cli/app.py end the process; every other module raises one of these classes. Any other
exception is a bug in kimbox (exit code 70).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: The message of ENOSPC, in the locale of the programs that kimbox runs.
NO_SPACE = "No space left on device"

#: Exit codes of failures whose class has exit code 1, by error code. A wrong input (a box, disk, catalog, signature,
#: digest or package) has that of a wrong spec; a version that does not exist has that of a missing thing.
EXIT_CODES = {
    **dict.fromkeys(
        (
            "archive-damaged", "bad-box", "bad-catalog", "bad-digest", "bad-record", "bad-report", "checksum-mismatch",
            "not-a-disk", "package-not-found", "signature-missing", "signature-wrong",
            "unsafe-archive", "unsafe-disk", "unsafe-files", "unsafe-save", "unsupported-box", "unsupported-format",
            "version-older", "wrong-box",
        ),
        3,
    ),
    "version-not-found": 5,
}  # fmt: skip


class KimboxError(Exception):
    """An expected failure.

    `message` says what failed and why; `hint` says what helps. `code` is a key of `kimbox.codes.CODES`; without one,
    the code of the class is used. `fields` holds the names and values that the message is about, for callers and tests.
    """

    exit_code = 1

    #: The code of an error that is raised without one. A class that stands for a single failure needs no other.
    code: str = "failed"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str | None = None, fields: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields: Mapping[str, str] = dict(fields or {})
        if code is not None:
            self.code = code
        if type(self).exit_code == KimboxError.exit_code:
            self.exit_code = EXIT_CODES.get(self.code, self.exit_code)

    def as_json(self) -> dict[str, Any]:
        """The error as it appears under `error` in the output of `--json`."""
        return {
            "kind": type(self).__name__,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "fields": dict(self.fields),
            "exit_code": self.exit_code,
        }


class UsageError(KimboxError):
    """The command line is wrong."""

    exit_code = 2
    code = "usage"


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """One fault in a file that a person wrote. Lines and columns count from 1, as editors do."""

    file: str
    line: int
    column: int
    message: str
    hint: str | None = None
    #: A key of `kimbox.codes.CODES`.
    code: str = field(default="bad-spec", kw_only=True)

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class SpecError(KimboxError):
    """A spec, layer or lock file is invalid; `problems` lists every fault, in order of file and position."""

    exit_code = 3
    code = "bad-spec"

    def __init__(
        self,
        problems: list[Problem],
        *,
        code: str | None = None,
        hint: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.file, p.line, p.column, p.message))
        super().__init__("\n".join(map(str, self.problems)), code=code, hint=hint, fields=fields)

    @classmethod
    def at(
        cls,
        file: str | Path,
        message: str,
        *,
        code: str | None = None,
        line: int = 1,
        column: int = 1,
        hint: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> SpecError:
        """An error with one fault at one place; error and fault have the same code."""
        code = code or cls.code
        return cls([Problem(str(file), line, column, message, hint, code=code)], code=code, fields=fields)

    def as_json(self) -> dict[str, Any]:
        return super().as_json() | {"problems": [asdict(p) for p in self.problems]}


class ImageError(KimboxError):
    """An image could not be built, downloaded or read."""

    code = "image-failed"


class GuestError(KimboxError):
    """The guest failed: it did not boot, its provisioning failed, or its answer is not as expected."""

    exit_code = 4
    code = "guest-failed"


class StateError(KimboxError):
    """A box, snapshot or file does not exist, or its state does not allow the command."""

    exit_code = 5
    code = "wrong-state"


class MissingToolError(KimboxError):
    """A program is missing on the host."""

    exit_code = 6
    code = "missing-tool"


class Interrupted(KimboxError):
    """Interrupted by the user."""

    exit_code = 130
    code = "interrupted"
