"""The command that installs packages: what it is given, and what nobody else may read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tinyimage

from kimbox import paths, run
from kimbox.image import apt, namespace, rootfs

PROXY = 'Acquire::http::Proxy "http://ann:secret@proxy.example.org:3128";'


def test_no_secret_is_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's and a mirror's password are in files that only this user reads."""
    commands: list[list[str]] = []

    def stream(argv: Sequence[str | Path], **_: Any) -> None:
        commands.append([str(word) for word in argv])

    monkeypatch.setattr(namespace, "stream", stream)
    monkeypatch.setattr(run, "require", lambda *_: "")
    monkeypatch.setattr(apt, "access_options", lambda: [PROXY])
    source = apt.Source("http://bob:secret@mirror.example.org/debian", "trixie", ("main",))
    monkeypatch.setattr(apt, "sources", lambda *_: [source])
    rootfs.build(tinyimage.tiny_recipe(), tmp_path, on_line=lambda _: None, log=io.StringIO())
    assert 1 == len(commands)
    assert "ann:" not in " ".join(commands[0])
    assert "bob:" not in " ".join(commands[0])
    assert [f"--aptopt={tmp_path}/apt.conf"] == [word for word in commands[0] if word.startswith("--aptopt")]
    assert f"{tmp_path}/sources.list" == commands[0][-1]
    written = {name: tmp_path / name for name in ("apt.conf", "sources.list")}
    assert PROXY in written["apt.conf"].read_text().splitlines()
    assert source.line() + "\n" == written["sources.list"].read_text()
    assert {0o600} == {path.stat().st_mode & 0o777 for path in written.values()}


def test_the_image_does_not_keep_them() -> None:
    """mmdebstrap puts --aptopt into a file of the new system; the last to clean up there removes it."""
    build = (paths.provisioners_dir() / "base/build").read_text()
    assert "/etc/apt/apt.conf.d/99mmdebstrap" in build
    assert "/etc/apt/sources.list" in build
