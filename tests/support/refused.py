"""Expects an error by its class, its code and its fields. The text of a message may change; these do not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import pytest

from kimbox.errors import KimboxError

Kind = TypeVar("Kind", bound=KimboxError)


@contextlib.contextmanager
def refused(kind: type[Kind], code: str, **fields: str) -> Iterator[pytest.ExceptionInfo[Kind]]:
    """Expects that the block raises an error of the class `kind` with this code, and with at least these fields."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert (code, fields) == (error.code, {name: error.fields.get(name) for name in fields}), str(error)
