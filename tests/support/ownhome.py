"""A home for each test: none sees what another made, or what the user of this host has."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KIMBOX_HOME, which is not there yet."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
