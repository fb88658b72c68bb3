"""Expects an error by its class, its code and its fields. The wording of a message may change, these may not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import pytest

from kimbox.errors import KimboxError

Kind = TypeVar("Kind", bound=KimboxError)


@contextlib.contextmanager
def refused(kind: type[Kind], code: str, **fields: str) -> Iterator[pytest.ExceptionInfo[Kind]]:
    """The block raises an error of class `kind` with this code, and with at least these fields."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert (code, fields) == (error.code, {name: error.fields.get(name) for name in fields}), str(error)
