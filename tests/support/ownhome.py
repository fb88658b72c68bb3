"""A KIMBOX_HOME for each test, so that a test uses neither files of other tests nor files of the user."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of KIMBOX_HOME. The folder does not exist yet."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
