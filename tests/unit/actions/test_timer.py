"""The timer of the user's systemd. systemctl is a double that notes its arguments."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from ownhome import home as home

from kimbox.actions import timer, userunits


@pytest.fixture
def calls(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with systemd. Returns the file of the calls of systemctl."""
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nexit $(cat {tmp_path}/code 2>/dev/null || echo 0)\n')
    program.chmod(0o755)
    (tmp_path / "calls").touch()
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(userunits, "BOOTED", tmp_path)
    return tmp_path / "calls"


def test_the_timer_comes_and_goes(calls: Path, home: Path) -> None:
    """It is written once, runs `kimbox expire` for this home by wall clock, and is removed with its service."""
    timer.install()
    timer.install()
    name = timer.name()
    assert [
        "--user --no-ask-password daemon-reload",
        f"--user --no-ask-password enable --now {name}.timer",
    ] == calls.read_text().splitlines()
    units = {path.suffix: path.read_text() for path in userunits.folder().iterdir()}
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(units[".timer"])
    assert ("*:0/5", "true") == (parser["Timer"]["OnCalendar"], parser["Timer"]["Persistent"])
    parser.read_string(units[".service"])
    assert f'"KIMBOX_HOME={home}"' == parser["Service"]["Environment"]
    assert parser["Service"]["ExecStart"].endswith('" -m kimbox --quiet expire')
    timer.remove()
    assert [] == list(userunits.folder().iterdir())
    assert calls.read_text().endswith(f"disable --now {name}.timer\n")


def test_each_home_has_a_timer_of_its_own(calls: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual one has a plain name."""
    first = timer.name()
    monkeypatch.setenv("KIMBOX_HOME", str(home / "other"))
    second = timer.name()
    monkeypatch.delenv("KIMBOX_HOME")
    assert 3 == len({first, second, timer.name()})
    assert "kimbox-expire" == timer.name()


def test_a_host_without_systemd(calls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written or called; nor if the user has no session."""
    monkeypatch.setattr(userunits, "BOOTED", tmp_path / "nothing")
    timer.install()
    monkeypatch.setattr(userunits, "BOOTED", tmp_path)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    timer.install()
    timer.remove()
    assert ("", False) == (calls.read_text(), userunits.folder().exists())


def test_a_systemd_that_refuses(calls: Path, tmp_path: Path) -> None:
    """It is no error: each verb does what is due."""
    (tmp_path / "code").write_text("1")
    timer.install()
    assert 1 == len(calls.read_text().splitlines())


@pytest.mark.parametrize(
    ("text", "expected"), [("/a b", '"/a b"'), ('/"x"', '"/\\"x\\""'), ("/100%$x", '"/100%%$$x"'), ("a\\b", '"a\\\\b"')]
)
def test_words_of_a_unit(text: str, expected: str) -> None:
    """Spaces, quotes, specifiers and variables keep their meaning."""
    assert expected == userunits.quoted(text)
