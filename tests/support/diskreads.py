"""Counts how often partition tables, LVM metadata and superblocks are parsed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from kimbox.image.disk import partitions
from kimbox.image.disk.ext4 import inodes
from kimbox.image.disk.lvm import reader


@attrs.define
class Reads:
    """Numbers of parsed partition tables, volume groups and superblocks of file systems."""

    tables: int = 0
    groups: int = 0
    file_systems: int = 0


def count(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Starts to count. Returns the numbers, which change with each read until the test ends."""
    reads = Reads()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            setattr(reads, name, getattr(reads, name) + 1)
            return function(*args)

        return call

    monkeypatch.setattr(partitions, "entries", counted("tables", partitions.entries))
    monkeypatch.setattr(reader, "read_group", counted("groups", reader.read_group))
    monkeypatch.setattr(inodes, "open_at", counted("file_systems", inodes.open_at))
    return reads
