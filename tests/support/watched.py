"""Fixtures of tests that follow a machine: its folder, and what the user sees."""

from __future__ import annotations

import io
from pathlib import Path

import fakedriver
import makemachine
import pytest

from kimbox.actions import watch
from kimbox.log import log
from kimbox.machine.folder import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The folder of a machine. A watch of it polls without a pause."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    fakedriver.install(monkeypatch)
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.001)
    return makemachine.make_machine()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The terminal of the user."""
    stream = io.StringIO()
    monkeypatch.setattr(log, "stream", stream)
    return stream
