"""Runs kimbox in this process, for tests of the command line."""

from __future__ import annotations

import json
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
    """An empty home, an empty working directory, and the settings of a new process."""
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
    """A function that runs kimbox with arguments. It returns the exit code, stdout and stderr."""

    def call(*arguments: str) -> Out:
        monkeypatch.setattr(log, "stream", None)
        code = run(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def result(out: str, verb: str) -> Any:
    """Returns the result of the output of a verb with --json. Checks the members of the output."""
    value = json.loads(out)
    assert (["kimbox", "result", "verb"], 1, verb) == (sorted(value), value["kimbox"], value["verb"])
    return value["result"]


def error(out: str, verb: str) -> dict[str, Any]:
    """Returns the error of the output of a verb with --json. Checks the members of the output."""
    value = json.loads(out)
    assert (["error", "kimbox", "verb"], 1, verb) == (sorted(value), value["kimbox"], value["verb"])
    assert {"kind", "code", "message", "hint", "fields", "exit_code"} <= set(value["error"])
    assert value["error"]["code"] in CODES
    problem: dict[str, Any] = value["error"]
    return problem


def environment(world: Path, **more: str) -> dict[str, str]:
    """Returns the environment of a kimbox in a process of its own, with more variables."""
    return {"KIMBOX_HOME": str(world / "home"), "PYTHONPATH": str(Path(app.__file__).parents[2])} | more
