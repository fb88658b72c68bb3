"""Runs kimbox in this process, for tests of the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tinyimage

from kimbox.cli import app
from kimbox.cli.app import run
from kimbox.codes import CODES
from kimbox.log import log
from kimbox.project import pins
from kimbox.settings import Settings, settings

Out = tuple[int, str, str]
Kimbox = Callable[..., Out]


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, an empty folder to work in, and the log as it is at a start."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(pins, "choose", tinyimage.choose)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    settings.replace(Settings())
    yield tmp_path
    settings.replace(Settings())


@pytest.fixture
def kimbox(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Out]:
    """Runs kimbox: exit code, stdout, stderr."""

    def call(*arguments: str) -> Out:
        monkeypatch.setattr(log, "stream", sys.stderr)
        code = run(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def result(out: str, verb: str) -> Any:
    """The result in an answer with --json, whose shape is checked."""
    value = json.loads(out)
    assert (["kimbox", "result", "verb"], 1, verb) == (sorted(value), value["kimbox"], value["verb"])
    return value["result"]


def error(out: str, verb: str) -> dict[str, Any]:
    """The error in an answer with --json, whose shape is checked."""
    value = json.loads(out)
    assert (["error", "kimbox", "verb"], 1, verb) == (sorted(value), value["kimbox"], value["verb"])
    assert {"kind", "code", "message", "hint", "fields", "exit_code"} <= set(value["error"])
    assert value["error"]["code"] in CODES
    found: dict[str, Any] = value["error"]
    return found


def environment(world: Path, **more: str) -> dict[str, str]:
    return {"KIMBOX_HOME": str(world / "home"), "PYTHONPATH": str(Path(app.__file__).parents[2])} | more
