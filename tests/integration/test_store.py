"""The image store: an image is built once, and is in the store completely or not at all, however a build ends."""

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
from refused import refused

from kimbox import files, run
from kimbox.errors import ImageError
from kimbox.image import namespace, obtain
from kimbox.image.build import rootfs
from kimbox.image.store import images as store

SUPPORT = Path(__file__).resolve().parents[1] / "support"

#: Module search path for another Python process, which needs kimbox, its libraries and the helpers of the tests.
PYTHONPATH = os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT), *filter(None, sys.path)])


pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store in an empty home."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home/images"


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes builds tiny. The file has one line for each build."""
    notes = tmp_path / "builds"
    notes.touch()
    monkeypatch.setattr(rootfs, "build", storechild.noting(notes, 0))
    return notes


def another(tmp_path: Path, point: str = "none", kimboxes: int = 0) -> run.Completed:
    """Runs another kimbox process that needs the tiny image."""
    env = {"PYTHONPATH": PYTHONPATH, "KIMBOX_HOME": str(tmp_path / "home")}
    argv = [sys.executable, SUPPORT / "storechild.py", point, tmp_path / "builds", str(kimboxes)]
    return run.run(argv, env=env, check=False, timeout_s=60)


def contents(images: Path) -> list[str]:
    """The names of all files and folders in the store except locks."""
    return sorted(p.name for p in images.iterdir() if p.suffix not in (".lock", ".lease"))


def test_the_second_call_builds_nothing(tmp_path: Path, images: Path, builds: Path) -> None:
    """The store has only the image, with its facts and its log, read-only."""
    box = tinyimage.tiny_box(tmp_path)
    made = obtain.ensure(box, tinyimage.LOCKED)
    assert made == obtain.ensure(box, tinyimage.LOCKED) == store.find(made.key)
    assert "built\n" == builds.read_text()
    assert [obtain.key_of(box, tinyimage.LOCKED)] == contents(images)
    assert {"disk.raw", "image.json", "packages.json", "build.log"} == {p.name for p in made.disk.parent.iterdir()}
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
    """At each point, the next build succeeds, and nothing is left of the killed one."""
    assert -9 == another(tmp_path, point).code
    done = another(tmp_path)
    assert 0 == done.code, done.stderr
    assert [done.stdout.strip()] == contents(images)
    assert store.find(done.stdout.strip()) is not None


def failing(error: Exception) -> Any:
    """A build that writes to its log and fails."""

    def build(*_: Any, log: Any, **__: Any) -> Path:
        log.write("E: Unable to locate package nonsense\n")
        raise error

    return build


def test_a_failing_build_keeps_its_log(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the last lines and the path of the log. The next successful build removes the log."""
    box = tinyimage.tiny_box(tmp_path)
    error = run.CommandError(["mmdebstrap"], "failed with exit status 25", "E: Unable to locate package nonsense")
    monkeypatch.setattr(rootfs, "build", failing(error))
    with refused(ImageError, "command-failed", program="mmdebstrap") as caught:
        obtain.ensure(box, tinyimage.LOCKED)
    assert "mmdebstrap failed with exit status 25:\nE: Unable to locate" in caught.value.message
    [name] = contents(images)
    assert str(images / name) == caught.value.fields["log"]
    assert f"the complete log: {images / name}" == caught.value.hint
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
def test_a_full_disk_has_a_code(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whether kimbox or a program failed; the hint is how to get more space."""
    monkeypatch.setattr(rootfs, "build", failing(error))
    with refused(ImageError, "no-space") as caught:
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


def test_leftovers_of_other_builds_are_removed(tmp_path: Path, images: Path, builds: Path) -> None:
    """The workspace of an interrupted build of another image is removed, unless a process has locked it."""
    for key in ("a" * 64, "b" * 64):
        (images / f".tmp-{key}/done").mkdir(parents=True)
    with files.locked(images / f"{'b' * 64}.lock"):
        made = obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
        assert [f".tmp-{'b' * 64}", made.key] == contents(images)


@pytest.mark.parametrize("damage", ["no facts", "no JSON", "other facts", "other format", "no disk"])
def test_a_damaged_image_is_refused(tmp_path: Path, builds: Path, damage: str) -> None:
    """It is neither used nor built again, because boxes use it. The hint names the folder to remove."""
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
    with refused(ImageError, "image-damaged", path=str(folder)) as caught:
        obtain.ensure(box, tinyimage.LOCKED)
    assert str(folder) in (caught.value.hint or "")
    assert "built\n" == builds.read_text()


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a build: the workspace is removed, and KeyboardInterrupt passes."""

    def interrupted(*args: Any, **options: Any) -> Path:
        tinyimage.fill(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(rootfs, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
    assert [] == contents(images)


def test_other_users_cannot_read_a_build(images: Path) -> None:
    """Only this user can read a workspace, which may contain passwords of mirrors. All users can read the image."""
    modes = []

    def fill(work: Path) -> dict[str, Any]:
        modes.append(work.stat().st_mode & 0o777)
        (work / store.DONE / "disk.raw").touch()
        return {"format": "raw"}

    made = store.publish("a" * 64, fill)
    assert [0o700] == modes
    assert made.disk.parent.stat().st_mode & 0o005 == 0o005
