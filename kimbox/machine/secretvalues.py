"""Reads the secret values of `env` when a machine starts. They go to the guest's memory, and to no file of kimbox."""

from __future__ import annotations

import os
from pathlib import Path

from kimbox.errors import KimboxError, StateError
from kimbox.files import read_bounded
from kimbox.spec import environment
from kimbox.spec.model import Box, Variable
from kimbox.spec.nodes import Fault

#: Maximum size of the file of a value, in bytes.
MAX_FILE_BYTES = 4096


def names(box: Box) -> tuple[str, ...]:
    """Returns the names of the secret variables."""
    return tuple(variable.name for variable in box.variables if variable.file)


def text_of(box: Box) -> bytes:
    """Returns a line NAME=VALUE for each secret variable of a box. Empty if there is none.

    Raises StateError: `secret-unreadable`, without the value, if a file is missing, is outside of the folder of the
    spec, is not private, or has a value that cannot be passed on.
    """
    return "".join(f"{v.name}={_value(box, v, v.file)}\n" for v in box.variables if v.file).encode()


def _value(box: Box, variable: Variable, file: Path) -> str:
    try:
        real = Path(os.path.realpath(file))
        if not real.is_relative_to(os.path.realpath(box.source.parent)):
            raise ValueError("it is outside of the folder of the spec")
        data = read_bounded(real, limit_bytes=MAX_FILE_BYTES)
        if real.stat().st_mode & 0o077:
            raise ValueError(f"other users may read it: `chmod 600 {file}`")
        return environment.value(data.decode().removesuffix("\n"))
    except (OSError, ValueError, KimboxError, Fault) as error:
        reason = (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not text in UTF-8"
    raise StateError(
        f"the value of the variable {variable.name} cannot be read from {file}: {reason}",
        code="secret-unreadable",
        hint="write the value into that file, in one line, with mode 600; the spec names it under `env`",
        fields={"name": variable.name, "path": str(file)},
    )
