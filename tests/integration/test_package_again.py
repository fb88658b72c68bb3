"""A package whose writing was interrupted is written again, and nothing else is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tinyimage
import tinypackage
from clirun import Kimbox, error
from clirun import kimbox as kimbox
from clirun import world as world
from refused import refused
from tinypackage import Made

from kimbox.errors import StateError
from kimbox.image.formats import export, unfinished
from kimbox.image.formats.export import Format

needs_images = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures

TWO = ("-o", "out", "--format", "qcow2", "--format", "raw")


@needs_images
def test_an_interrupted_package_is_written_again(
    made: Made, kimbox: Kimbox, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is there, the second is not: the next run writes both. A complete package stays."""
    write = export.write

    def interrupted(kind: Format, *words: object) -> None:
        if kind is Format.RAW:
            raise KeyboardInterrupt
        write(kind, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write", interrupted)
    assert 130 == kimbox("package", *TWO)[0]
    assert {"tiny.qcow2", ".tiny.package"} == {path.name for path in (box / "out").iterdir()}
    monkeypatch.setattr(export, "write", write)
    first = (box / "out/tiny.qcow2").read_bytes()
    made(*TWO)
    names = {path.name for path in (box / "out").iterdir()}
    assert {"tiny.qcow2", "tiny.raw", "tiny.SHA256SUMS"} < names
    assert ".tiny.package" not in names
    assert first == (box / "out/tiny.qcow2").read_bytes()
    code, out, _ = kimbox("--json", "package", *TWO)
    assert (5, "file-exists") == (code, error(out, "package")["code"])


@needs_images
def test_a_file_that_was_changed_since_stays(
    kimbox: Kimbox, box: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user may have put another file in the place of one of an interrupted run."""
    made("-o", "elsewhere")  # the image is there now
    write = export.write

    def interrupted(kind: Format, *words: object) -> None:
        write(kind, *words)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write", interrupted)
    assert 130 == kimbox("package", *TWO)[0]
    (box / "out/tiny.qcow2").write_text("mine")
    code, out, _ = kimbox("--json", "package", *TWO)
    assert (5, "file-exists") == (code, error(out, "package")["code"])
    assert "mine" == (box / "out/tiny.qcow2").read_text()


@pytest.mark.parametrize("killed_after", range(4))
def test_a_kill_at_any_point(tmp_path: Path, killed_after: int) -> None:
    """The next run finds every file that a killed run has published, and no other one."""
    folder = tmp_path / "out"
    folder.mkdir()
    targets, note = [folder / name for name in ("a", "b", "c")], folder / ".x.package"
    pid = os.fork()
    if not pid:
        with unfinished.writing(note, targets) as files:
            for index, target in enumerate(targets):
                if index == killed_after:
                    os.kill(os.getpid(), 9)
                files.write(target, target.name.encode())
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert targets[:killed_after] == unfinished.left(note, targets)
    assert targets[:killed_after] == [target for target in targets if target.exists()]
    with unfinished.writing(note, targets) as files:
        assert not any(target.exists() for target in targets)
        for target in targets:
            files.write(target, b"new")
        with refused(StateError, "busy", path=str(folder)), unfinished.writing(note, targets):
            pass
    assert ["a", "b", "c"] == sorted(path.name for path in folder.iterdir())
    assert [b"new"] * 3 == [target.read_bytes() for target in targets]


def test_a_note_that_is_not_ours(tmp_path: Path) -> None:
    """Neither a link, nor lines that are damaged or name other files, remove anything."""
    target, note = tmp_path / "a", tmp_path / ".x.package"
    target.write_text("mine")
    info = target.stat()
    described = ["a", info.st_ino, info.st_size, info.st_mtime_ns]
    (tmp_path / "other").write_text(json.dumps(described) + "\n")
    note.symlink_to(tmp_path / "other")
    assert [] == unfinished.left(note, [target])
    with refused(StateError, "folder-not-private", path=str(note)), unfinished.writing(note, [target]):
        pass
    note.unlink()
    for line in (
        "[]",
        "{",
        "[" * 5000,
        json.dumps(["../a", *described[1:]]),
        json.dumps(["a", None, 0, 0]),
        '["a", 1e999, 0, 0]',
    ):
        note.write_text(line)
        assert [] == unfinished.left(note, [target])
    assert "mine" == target.read_text()
