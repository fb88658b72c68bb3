"""Folders with names that are not valid text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kimbox.lock.git.mirror import Mirror
from kimbox.spec.model import Repository


def mirror(folder: Path) -> Mirror:
    """The mirror of a folder."""
    return Mirror.of(Repository("code", str(folder), True, "main", "/opt/code"))


def test_a_folder_whose_name_is_not_valid_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and KIMBOX_HOME have names in Latin-1. The commit is that of the same content elsewhere."""
    monkeypatch.setenv("KIMBOX_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/h\xe9"))
    pins = []
    for name in (b"caf\xe9", b"cafe"):
        source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        source.mkdir()
        (source / "setup").write_text("#!/bin/sh\n")
        pins += [mirror(source).resolve("HEAD"), mirror(source).present()]
    assert 1 == len(set(pins))
