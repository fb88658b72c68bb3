"""What prune removes, and what it keeps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import ownhome
import pytest
from makemachine import make_machine
from refused import refused

from kimbox import paths
from kimbox.actions import prune
from kimbox.errors import StateError
from kimbox.files import locked, write_json
from kimbox.guest import delivery
from kimbox.image.store import images, lease
from kimbox.machine import templates
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose
from kimbox.machine.templates import Template
from kimbox.transfer import downloads

home = ownhome.home  # a fixture


def make_image(key: str) -> Path:
    """An image in the store."""
    folder = paths.images_dir() / key
    folder.mkdir(parents=True)
    (folder / "disk.raw").write_bytes(b"x" * 8192)
    (folder / "image.json").write_text(json.dumps({"key": key, "format": "raw"}))
    return folder


def test_only_unused_images_are_removed() -> None:
    """The image of a machine stays. An unused image and the log of a failed build are removed."""
    used, spare = make_image("e" * 64), make_image("a" * 64)
    failed = paths.images_dir() / "b.failed.log"
    failed.write_text("no")
    make_machine()
    unused = prune.unused()
    assert [item.path for item in unused] == [spare, failed]
    assert unused[0].size_bytes >= 8192
    prune.remove(unused)
    assert used.is_dir()
    assert not spare.exists()
    assert not failed.exists()
    assert prune.unused() == []


def make_template(key: str, image: str) -> Path:
    """A template in the store, whose disk is on an image."""

    def fill(work: Path, done: Path) -> Template:
        for name in (templates.DISK, templates.OVERLAY, templates.RAM, templates.STATE):
            (done / name).write_bytes(b"x" * 8192)
        return Template(key, "tiny", image, "f" * 64, 1, 1 << 30, None, ())

    return templates.make(key, fill).folder


def test_templates_stay_while_a_clone_refers_to_them() -> None:
    """The image of a template stays as long as the template, and is unused after it."""
    image, used, spare = make_image("b" * 64), make_template("1" * 64, "b" * 64), make_template("2" * 64, "b" * 64)
    clone = make_machine(template="1" * 64)
    assert [spare] == [item.path for item in prune.unused()]
    assert prune.unused()[0].size_bytes >= 4 * 8192
    assert [spare] == [item.path for item in prune.remove(prune.unused())]
    assert (True, False, True) == (used.is_dir(), spare.exists(), image.is_dir())
    shutil.rmtree(clone.folder)
    assert [used] == [item.path for item in prune.remove(prune.unused())]
    assert [image] == [item.path for item in prune.unused()]


def test_a_template_that_became_used_stays() -> None:
    template = make_template("1" * 64, "b" * 64)
    unused = prune.unused()
    make_machine(template="1" * 64)
    assert [] == prune.remove(unused)
    assert template.is_dir()


def test_what_a_killed_process_left_of_a_template_is_removed() -> None:
    work = paths.templates_dir() / f".tmp-{'1' * 64}"
    work.mkdir(parents=True)
    (work / "ram").write_bytes(b"x" * 8192)
    assert [(work, "of an interrupted run")] == [(item.path, item.description) for item in prune.unused()]
    with locked(paths.templates_dir() / f"{'1' * 64}.lock"):
        assert [] == prune.unused()
    assert [work] == [item.path for item in prune.remove(prune.unused())]
    assert not work.exists()


def test_an_image_that_became_used_while_prune_prompted_stays() -> None:
    """Prune reads the used images a second time, under the lease that prevents new machines from using them."""
    image, spare = make_image("e" * 64), make_image("a" * 64)
    unused = prune.unused()
    make_machine()
    assert [spare] == [item.path for item in prune.remove(unused)]
    assert (True, False) == (image.is_dir(), spare.exists())


def test_machines_are_not_made_while_prune_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exclusive lease is held while prune reads which images are used, up to the removal. Ports are not locked."""
    make_image("a" * 64)
    unused = prune.unused()
    used_images = prune.used_images
    held: list[bool] = []
    monkeypatch.setattr(lease, "WAIT_S", 0)

    def check_lease() -> set[str]:
        with pytest.raises(StateError), lease.shared("a" * 64):
            pass
        with locked(paths.machines_dir() / ".ports.lock"):
            held.append(True)
        return used_images()

    monkeypatch.setattr(prune, "used_images", check_lease)
    assert unused == prune.remove(unused)
    assert [True] == held


def test_an_image_that_a_process_uses_stays() -> None:
    """The process may write the machine or added box that refers to the image only later."""
    spare = make_image("a" * 64)
    with lease.shared(spare.name):
        assert [] == prune.remove(prune.unused())
    assert [spare] == [item.path for item in prune.remove(prune.unused())]


def test_another_prune_may_remove_files_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may disappear after prune lists the folder and before it reads the size."""
    spare = make_image("a" * 64)
    walk = os.walk

    def walk_and_remove(path: Path) -> list[tuple[str, list[str], list[str]]]:
        listed = list(walk(path))
        (spare / "disk.raw").unlink()
        return listed

    monkeypatch.setattr(os, "walk", walk_and_remove)
    assert [spare] == [item.path for item in prune.unused()]


def test_a_removal_that_was_interrupted_is_finished() -> None:
    """The next prune removes an image that the interrupted prune had moved out of the store."""
    spare = make_image("a" * 64)
    left = make_image(f"{images.GONE}{spare.name}")
    other = make_image(f"{images.GONE}{'b' * 64}")
    assert [left, other, spare] == [item.path for item in prune.remove(prune.unused())]
    assert (False, False, False) == (spare.exists(), left.exists(), other.exists())


def test_remains_of_interrupted_runs_are_shown_and_removed() -> None:
    """An image and a machine that were not finished, a machine that was not removed completely, and a download."""
    machine = make_machine()
    part = paths.downloads_dir() / f"{'c' * 64}.part"
    work = paths.images_dir() / f"{images.TEMPORARY}{'d' * 64}"
    new, old = paths.machines_dir() / ".tmp-new", paths.machines_dir() / "old"
    for path in (work, new, old, part.parent):
        path.mkdir(parents=True, exist_ok=True)
        (path / "disk").write_bytes(b"x" * 8192)
    (part.parent / "disk").rename(part)
    write_json(part.with_name(f"{part.name}.json"), {"location": "https://example.org/x.box"})
    unused = prune.unused()
    assert [part, work, new, old] == [item.path for item in unused]
    assert "download of https://example.org/x.box" == unused[0].description
    assert all(item.size_bytes >= 8192 for item in unused)
    assert unused == prune.remove(unused)
    assert [] == [item for item in (part, *part.parent.iterdir(), work, new, old) if item.exists()]
    assert machine.exists


def test_what_git_did_not_finish_in_a_mirror() -> None:
    """A killed fetch leaves a pack of the size of the repository. The mirror stays."""
    mirror = paths.mirrors_dir() / "code-0123456789abcdef.git"
    new, folder = paths.mirrors_dir() / f".new-{mirror.name}-x", mirror / "objects/tmp_objdir-x"
    pack, loose = mirror / "objects/pack/tmp_pack_x", mirror / "objects/ab/tmp_obj_x"
    for file in (pack, loose, folder / "x", new / "x"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * 8192)
    unused = prune.unused()
    assert [new, loose, pack, folder] == [item.path for item in unused]
    assert all(item.size_bytes >= 8192 for item in unused)
    with locked(mirror.with_suffix(".lock")):
        assert ([], []) == (prune.unused(), prune.remove(unused))
    assert unused == prune.remove(unused)
    assert [False] * 4 == [item.path.exists() for item in unused]
    assert pack.parent.is_dir()


def test_copies_in_the_folder_of_a_machine() -> None:
    """They are shown and removed, unless a process works on the machine. The machine stays."""
    machine = make_machine()
    sent = machine.folder / f"{delivery.TEMPORARY}12345678"
    machine.package_work.mkdir()
    sent.mkdir()
    for copy in (machine.package_work / "clean.raw", machine.new_disk, sent / "delivery.tar"):
        copy.write_bytes(b"x" * 8192)
    with machine.locked():
        assert [] == prune.unused()
    unused = prune.unused()
    assert [sent, machine.new_disk, machine.package_work] == [item.path for item in unused]
    assert unused == prune.remove(unused)
    assert (True, True, [False] * 3) == (machine.exists, machine.disk.exists(), [i.path.exists() for i in unused])


def test_remains_that_a_process_works_on_are_neither_shown_nor_removed() -> None:
    """A download, an image and a machine whose locks are held."""
    part = paths.downloads_dir() / f"{'c' * 64}.part"
    work = paths.images_dir() / f"{images.TEMPORARY}{'d' * 64}"
    new = paths.machines_dir() / ".tmp-new"
    for path in (part, work, new):
        path.mkdir(parents=True)
    part.rmdir()
    part.write_bytes(b"x")
    unused = prune.unused()
    assert [part, work, new] == [item.path for item in unused]
    locks = [downloads.lock_file(part), paths.images_dir() / f"{'d' * 64}.lock", Machine("new").lock_file]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(locked(lock))
        assert ([], []) == (prune.unused(), prune.remove(unused))
    assert [True] * 3 == [path.exists() for path in (part, work, new)]


def test_a_machine_that_was_finished_while_prune_prompted_stays() -> None:
    """Prune looks for the record again, under the lock of the machine."""
    folder = paths.machines_dir() / "tiny"
    folder.mkdir(parents=True)
    unused = prune.unused()
    assert [folder] == [item.path for item in unused]
    folder.rmdir()
    machine = make_machine()
    assert [] == prune.remove(unused)
    assert machine.exists


def test_the_lock_of_an_image_stays_and_is_not_shown() -> None:
    """The lock file stays, because a waiting process has it open. A locked image stays."""
    spare = make_image("a" * 64)
    lock = spare.with_name(f"{spare.name}.lock")
    with locked(lock):
        inode = lock.stat().st_ino
        assert [] == prune.remove(prune.unused())
    assert 1 == len(prune.remove(prune.unused()))
    assert (inode, False, []) == (lock.stat().st_ino, spare.exists(), prune.unused())


def test_nothing_is_removed_while_a_machine_is_damaged() -> None:
    """The image that a damaged machine needs is not known."""
    make_image("a" * 64)
    make_machine().record_file.write_text("{")
    with refused(StateError, "file-damaged", name="tiny"):
        prune.unused()


def test_an_empty_home_has_nothing_to_remove() -> None:
    """Before the first image there is no store."""
    assert prune.unused() == []


def test_the_cache_of_packages_is_removed_on_request(home: Path) -> None:
    """The lists of the archives are removed with it, except those that a process uses."""
    deb, control = paths.packages_dir() / "aa/a.deb", paths.packages_dir() / "aa/a.control"
    idle, busy = paths.archives_dir() / "idle/state", paths.archives_dir() / "busy/state"
    for file in (deb, control, idle, busy):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * 5000)
    assert [] == prune.unused()
    unused = prune.unused(packages=True)
    assert [paths.archives_dir(), paths.packages_dir()] == [item.path for item in unused]
    with locked(busy.parent / "lock"):
        assert [paths.packages_dir()] == [item.path for item in prune.remove(unused)]
    assert [False, False, False, True] == [file.exists() for file in (deb, control, idle, busy)]


def test_machines_of_a_killed_sweep_are_removed() -> None:
    """A sweep that runs holds the locks of its machines. The machine of a single job stays: it has results."""
    make_image("e" * 64)
    left, used = (make_machine(f"tiny-sweep-{name}", box="tiny", purpose=Purpose.SWEEP) for name in ("left", "used"))
    job = make_machine("tiny-job-1", box="tiny", purpose=Purpose.JOB)
    with locked(used.lock_file):
        assert [left.folder] == [item.path for item in prune.unused()]
        prune.remove(prune.unused())
    assert (False, True, True) == (left.folder.exists(), used.exists, job.exists)


def test_a_machine_that_was_removed_meanwhile_needs_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was listed, and is gone when its record is read."""
    make_machine("stays")
    monkeypatch.setattr(prune, "machines", lambda: [Machine("stays"), Machine("gone")])
    assert prune.used_by_machines() == {Machine("stays").record().image}
    assert prune.unused() == []
