"""The image store: built once, whole or not there, whatever ends a build."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import storechild
import tinyimage

from kimbox import files, run
from kimbox.errors import ImageError
from kimbox.image import namespace, obtain
from kimbox.image.build import rootfs
from kimbox.image.store import images as store

SUPPORT = Path(__file__).resolve().parents[1] / "support"

#: How another Python finds kimbox, what it needs, and the helpers of the tests.
PYTHONPATH = os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT), *filter(None, sys.path)])


pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a home of its own."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home/images"


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny builds, noted in this file."""
    notes = tmp_path / "builds"
    notes.touch()
    monkeypatch.setattr(rootfs, "build", storechild.noting(notes, 0))
    return notes


def another(tmp_path: Path, point: str = "none", kimboxes: int = 0) -> run.Completed:
    """Another kimbox that wants the tiny image."""
    env = {"PYTHONPATH": PYTHONPATH, "KIMBOX_HOME": str(tmp_path / "home")}
    argv = [sys.executable, SUPPORT / "storechild.py", point, tmp_path / "builds", str(kimboxes)]
    return run.run(argv, env=env, check=False, timeout_s=60)


def contents(images: Path) -> list[str]:
    """What is in the store, but locks."""
    return sorted(p.name for p in images.iterdir() if p.suffix not in (".lock", ".lease"))


def test_the_second_call_builds_nothing(tmp_path: Path, images: Path, builds: Path) -> None:
    """The image is there with its facts and its log, read-only, and nothing else is."""
    box = tinyimage.tiny_box(tmp_path)
    made = obtain.ensure(box, tinyimage.LOCKED)
    assert made == obtain.ensure(box, tinyimage.LOCKED) == store.find(made.key)
    assert "built\n" == builds.read_text()
    assert [obtain.key_of(box, tinyimage.LOCKED)] == contents(images)
    assert {"disk.raw", "image.json", "build.log"} == {p.name for p in made.disk.parent.iterdir()}
    assert 0o444 == made.disk.stat().st_mode & 0o777
    assert ("raw", tinyimage.DISK.size_bytes) == (made.format, made.facts["virtual_bytes"])
    assert "installing\n" == (made.disk.parent / "build.log").read_text()


def test_two_at_once_build_once(tmp_path: Path, images: Path) -> None:
    """The second waits for the first and takes its image."""
    done: list[run.Completed] = []
    threads = [threading.Thread(target=lambda: done.append(another(tmp_path, kimboxes=2))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [0, 0] == [d.code for d in done], done
    assert {obtain.key_of(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED) + "\n"} == {d.stdout for d in done}
    assert "built\n" == (tmp_path / "builds").read_text()
    assert 1 == len(contents(images))


@pytest.mark.parametrize("point", list(storechild.POINTS))
def test_a_build_that_is_killed(tmp_path: Path, images: Path, point: str) -> None:
    """Wherever it is cut, the next one succeeds, and nothing is left of the first."""
    assert -9 == another(tmp_path, point).code
    done = another(tmp_path)
    assert 0 == done.code, done.stderr
    assert [done.stdout.strip()] == contents(images)
    assert store.find(done.stdout.strip()) is not None


def failing(error: Exception) -> Any:
    """A build that says something and fails."""

    def build(*_: Any, log: Any, **__: Any) -> Path:
        log.write("E: Unable to locate package nonsense\n")
        raise error

    return build


def test_a_failing_build_keeps_its_log(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the last lines and says where the rest is; the next build that works removes the log."""
    box = tinyimage.tiny_box(tmp_path)
    error = run.CommandError(["mmdebstrap"], "failed with exit status 25", "E: Unable to locate package nonsense")
    monkeypatch.setattr(rootfs, "build", failing(error))
    with pytest.raises(ImageError, match=r"mmdebstrap failed with exit status 25:\nE: Unable to locate") as caught:
        obtain.ensure(box, tinyimage.LOCKED)
    [name] = contents(images)
    assert f"the whole log: {images / name}" == caught.value.hint
    assert "E: Unable to locate package nonsense\n" == (images / name).read_text()
    assert not files.is_locked(images / f"{obtain.key_of(box, tinyimage.LOCKED)}.lock")
    monkeypatch.setattr(rootfs, "build", tinyimage.fill)
    assert [obtain.ensure(box, tinyimage.LOCKED).key] == contents(images)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        run.CommandError(["mmdebstrap"], "failed", "dpkg: error: cannot write: No space left on device"),
    ],
)
def test_a_full_disk_is_said(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whoever met it, the hint is how to get room."""
    monkeypatch.setattr(rootfs, "build", failing(error))
    with pytest.raises(ImageError, match=r"(?i)no space") as caught:
        obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
    assert "KIMBOX_HOME" in (caught.value.hint or "")
    assert [] == [n for n in contents(images) if not n.endswith(".failed.log")]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of 200 KiB the build fails with that reason, not with a traceback."""
    (tmp_path / "home").mkdir()
    script = 'mount -t tmpfs -o size=200k none "$0" && exec "$@"'
    child = [sys.executable, SUPPORT / "storechild.py", "none", tmp_path / "builds", "0"]
    env = {"PYTHONPATH": PYTHONPATH, "KIMBOX_HOME": str(tmp_path / "home")}
    argv = namespace.command(["sh", "-c", script, tmp_path / "home", *child])
    done = run.run(argv, env=env, check=False, timeout_s=60)
    assert 1 == done.code
    assert "Traceback" not in done.stderr
    assert "ImageError" in done.stderr
    assert "KIMBOX_HOME" in done.stderr


def test_leftovers_of_others_are_swept(tmp_path: Path, images: Path, builds: Path) -> None:
    """What an interrupted build of another image left is removed, unless somebody is at work there."""
    for key in ("a" * 64, "b" * 64):
        (images / f".tmp-{key}/done").mkdir(parents=True)
    with files.locked(images / f"{'b' * 64}.lock"):
        made = obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
        assert [f".tmp-{'b' * 64}", made.key] == contents(images)


@pytest.mark.parametrize("damage", ["no facts", "no JSON", "other facts", "other format", "no disk"])
def test_a_damaged_image_is_said(tmp_path: Path, builds: Path, damage: str) -> None:
    """It is neither used nor built anew under the boxes that are made from it: the hint says what to do."""
    box = tinyimage.tiny_box(tmp_path)
    folder = obtain.ensure(box, tinyimage.LOCKED).disk.parent
    facts = folder / store.FACTS
    match damage:
        case "no facts":
            facts.unlink()
        case "no JSON":
            facts.write_text("{")
        case "other facts":
            files.write_json(facts, json.loads(facts.read_text()) | {"key": "x"})
        case "other format":
            files.write_json(facts, json.loads(facts.read_text()) | {"format": "../../x"})
        case "no disk":
            (folder / "disk.raw").unlink()
    with pytest.raises(ImageError, match="damaged") as caught:
        obtain.ensure(box, tinyimage.LOCKED)
    assert str(folder) in (caught.value.hint or "")
    assert "built\n" == builds.read_text()


def test_ctrl_c_leaves_nothing(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted build cleans up and goes on as an interrupt."""

    def interrupted(*args: Any, **options: Any) -> Path:
        tinyimage.fill(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(rootfs, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
    assert [] == contents(images)


def test_nobody_else_looks_into_a_build(images: Path) -> None:
    """The folder of a build holds passwords of mirrors: it is this user's alone; the finished image is everybody's."""
    modes = []

    def fill(work: Path) -> dict[str, Any]:
        modes.append(work.stat().st_mode & 0o777)
        (work / store.DONE / "disk.raw").touch()
        return {"format": "raw"}

    made = store.publish("a" * 64, fill)
    assert [0o700] == modes
    assert made.disk.parent.stat().st_mode & 0o005 == 0o005
