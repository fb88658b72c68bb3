"""kimbox lock --check, --dry-run, up --locked and --offline: with real git and real mirrors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import clirun
import makebox
import pytest
import tinyimage
from clirun import Kimbox, result
from refused import refused

from kimbox import paths
from kimbox.errors import ImageError, KimboxError, SpecError
from kimbox.image import obtain
from kimbox.image.inputs.recipe import requested
from kimbox.lock.apt.packages import LockedPackage
from kimbox.lock.git.command import GitError
from kimbox.lock.lockfile import read_lock, write_lock
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.spec.load import load_box
from kimbox.spec.model import PackageImage, RemoteImage

kimbox, world = clirun.kimbox, clirun.world  # fixtures

SPEC = """\
kimbox: 1
name: tiny
base: [_defaults/debian.yaml]
repositories:
  setup: {{url: ./setup}}
  code: {{url: "file://{code}", ref: {ref}}}
"""


@pytest.fixture
def work(world: Path, kimbox: Kimbox) -> Path:
    """A folder with a spec, its setup folder and its lock; the repository `code` is beside it."""
    makebox.make_repository(world / "code")
    (world / "work/setup").mkdir()
    (world / "work/setup/setup").write_text("#!/bin/sh\n")
    (world / "work/setup/setup").chmod(0o755)
    write_spec(world)
    assert 0 == kimbox("lock")[0]
    return world / "work"


def write_spec(world: Path, ref: str = "main", more: str = "") -> None:
    (world / "work/kimbox.yaml").write_text(SPEC.format(code=world / "code", ref=ref) + more)


def test_a_lock_that_stands(kimbox: Kimbox, work: Path) -> None:
    """Nothing is written, whatever moved on a server; the answer names the file."""
    before = (work / "kimbox.lock").stat()
    makebox.commit(work.parent / "code", {"a": "two\n"})
    code, out, _ = kimbox("lock", "--check")
    assert (0, f"{work}/kimbox.lock matches its spec\n") == (code, out)
    after = (work / "kimbox.lock").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_old_packages(kimbox: Kimbox, work: Path) -> None:
    """--max-age warns, with the command that helps, and the lock stands. The default is no limit."""
    path = work / "kimbox.lock"
    lock = read_lock(path)
    assert lock.packages is not None
    write_lock(path, attrs.evolve(lock, packages=attrs.evolve(lock.packages, as_of="2024-01-01T00:00:00Z")))
    code, out, err = kimbox("lock", "--check", "--max-age", "7d")
    assert 0 == code
    assert f"{path} matches its spec\n" == out
    assert "2024-01-01, " in err
    assert "`kimbox lock --update packages`" in err
    for arguments in ([], ["--max-age", "3650d"]):
        assert (0, "") == kimbox("lock", "--check", *arguments)[::2]
    assert "2024-01-01T00:00:00Z" == result(kimbox("lock", "--check", "--json")[1], "lock")["packages_as_of"]
    assert 2 == kimbox("lock", "--max-age", "7")[0]


def test_no_lock_is_not_made(kimbox: Kimbox, work: Path) -> None:
    """--check and up --locked end with 3."""
    (work / "kimbox.lock").unlink()
    for arguments in (["lock", "--check"], ["up", "--locked"]):
        code, _, err = kimbox(*arguments)
        assert 3 == code
        assert "lock not found" in err
    assert not (work / "kimbox.lock").exists()


def change_spec(work: Path) -> None:
    write_spec(work.parent, more="cpus: 3\n")


def change_folder(work: Path) -> None:
    (work / "setup/setup").write_text("#!/bin/sh\necho new\n")


def change_ref(work: Path) -> None:
    write_spec(work.parent, ref="v2")


def change_disk(work: Path) -> None:
    write_spec(work.parent, more="disk: {size: 20GiB}\n")


def edit_lock(work: Path, field: str) -> None:
    """As somebody by hand: the `field` of the repository `code`."""
    path = work / "kimbox.lock"
    old = getattr(read_lock(path).repositories["code"], field)
    path.write_text(path.read_text().replace(old, "1f" * 20))


def edit_image(work: Path) -> None:
    """As after an update of kimbox: the spec is unchanged, the key of the image is not."""
    path = work / "kimbox.lock"
    path.write_text(path.read_text().replace(str(read_lock(path).image), "1f" * 32))


def edit_old_image(work: Path) -> None:
    """As if somebody had removed a dependency from a lock of an older kimbox, which has no digest of the packages."""
    path = work / "kimbox.lock"
    image = load_box(work / "kimbox.yaml").image
    assert isinstance(image, PackageImage)
    versions = {name: LockedPackage("1.0", "all", "a" * 64) for name in requested(image)}
    lock = read_lock(path)
    packages = attrs.evolve(lock.packages, versions=versions, chosen_digest=None)
    write_lock(path, attrs.evolve(lock, packages=packages))


@pytest.mark.parametrize(
    ("change", "places", "words"),
    [
        (change_spec, ["spec"], ["the spec has changed: its digest is"]),
        (change_folder, ["commit"], ["repository setup: the folder ./setup has changed"]),
        (change_ref, ["spec", "code"], ["the spec asks for v2, the lock was made for main"]),
        (change_disk, ["spec", "image"], ["the image is made from other inputs"]),
        (edit_image, ["image"], ["so kimbox was updated"]),
        (edit_old_image, ["image"], ["check it with `git diff kimbox.lock` before `kimbox lock`"]),
        (lambda work: edit_lock(work, "tree"), ["tree"], ["and the lock has " + "1f" * 20]),
    ],
)
def test_each_disagreement_is_told_at_its_line(
    kimbox: Kimbox, work: Path, change: Callable[[Path], None], places: list[str], words: list[str]
) -> None:
    """With 3, all of them at once, and neither --check nor up --locked changes the file."""
    change(work)
    text = (work / "kimbox.lock").read_text()
    code, out, _ = kimbox("lock", "--check", "--json")
    error = clirun.error(out, "lock")
    assert 3 == code == error["exit_code"]
    at = [text.splitlines()[problem["line"] - 1].strip().split(":")[0] for problem in error["problems"]]
    assert places == at
    assert all(any(word in problem["message"] for problem in error["problems"]) for word in words)
    code, _, err = kimbox("up", "--locked")
    assert 3 == code
    assert words[0] in err
    assert text == (work / "kimbox.lock").read_text()


def test_a_commit_locked_by_its_name_stays_that(kimbox: Kimbox, work: Path) -> None:
    """A lock that holds another commit than the spec names outright is refused, by plain `up` as well."""
    commit = makebox.git(work.parent / "code", "rev-parse", "HEAD")
    write_spec(work.parent, ref=commit)
    assert 0 == kimbox("lock")[0]
    path = work / "kimbox.lock"
    path.write_text(path.read_text().replace(f"commit: {commit}", "commit: " + "2f" * 20))
    code, _, err = kimbox("lock", "--check")
    assert (3, True) == (code, f"the spec asks for the commit {commit}, the lock holds {'2f' * 20}" in err)
    with pytest.raises(SpecError, match="asks for the commit"):
        pins.lock_for(Project(load_box(work / "kimbox.yaml")))


def test_a_check_asks_no_server_and_a_remote_one_does(kimbox: Kimbox, work: Path) -> None:
    """What this machine has not fetched yet is a note; where the server is away, only --remote fails."""
    (paths.mirrors_dir()).rename(work / "away")
    (work.parent / "code").rename(work.parent / "gone")
    code, out, _ = kimbox("lock", "--check")
    assert (0, True) == (code, "note: repository code: this machine has not fetched the locked commit" in out)
    code, _, err = kimbox("lock", "--check", "--remote")
    assert (1, True) == (code, "cannot be read" in err)
    (work.parent / "gone").rename(work.parent / "code")
    code, out, _ = kimbox("lock", "--check", "--remote", "--json")
    assert (0, []) == (code, clirun.result(out, "lock")["notes"])


def test_what_became_of_a_branch_is_told(kimbox: Kimbox, work: Path) -> None:
    """Moved on, force-pushed, deleted: told, and the lock stands as long as its commit is to be had."""
    source = work.parent / "code"
    first = makebox.git(source, "rev-parse", "HEAD")
    second = makebox.commit(source, {"a": "two\n"})
    assert [f"repository code: main is a commit ahead of the lock, at {second}"] == notes(kimbox)
    makebox.git(source, "checkout", "-q", "--orphan", "other")
    third = makebox.commit(source, {"a": "three\n"})
    makebox.git(source, "branch", "-f", "main")
    (note,) = notes(kimbox)
    assert f"the branch main was force-pushed: {first} is no longer part of it, it is at {third}" in note
    makebox.git(source, "branch", "-D", "main")
    (note,) = notes(kimbox)
    assert "has no branch, tag or commit main" in note


def notes(kimbox: Kimbox) -> list[str]:
    code, out, _ = kimbox("lock", "--check", "--remote", "--json")
    assert 0 == code
    found: list[str] = clirun.result(out, "lock")["notes"]
    return found


@pytest.mark.parametrize("annotated", [True, False])
def test_a_moved_tag_is_told_loudly(kimbox: Kimbox, work: Path, annotated: bool) -> None:
    """At --check --remote, at --update --dry-run and at --update, with both commits."""
    source = work.parent / "code"
    tag = ("tag", "-f", *(("-a", "-m", "one") if annotated else ()), "v1")
    makebox.git(source, *tag)
    write_spec(work.parent, ref="v1")
    assert 0 == kimbox("lock")[0]
    old = makebox.git(source, "rev-parse", "HEAD")
    new = makebox.commit(source, {"a": "two\n"})
    makebox.git(source, *tag)
    words = f"repository code: the tag v1 was moved from {old} to {new}"
    assert [words] == notes(kimbox)
    for arguments in (["--update", "code", "--dry-run"], ["--update", "code"]):
        code, _, err = kimbox("lock", *arguments, "--quiet")
        assert (0, True) == (code, f"warning: {words}" in err)
    assert new == read_lock(work / "kimbox.lock").repositories["code"].commit


def test_a_vanished_commit_is_an_error_with_its_line(kimbox: Kimbox, work: Path) -> None:
    """Only where it is nowhere to be had: neither here nor there."""
    source = work.parent / "code"
    old = makebox.git(source, "rev-parse", "HEAD")
    makebox.git(source, "commit", "--amend", "-qm", "other")
    makebox.git(source, "reflog", "expire", "--expire=now", "--all")
    makebox.git(source, "gc", "-q", "--prune=now")
    assert "was force-pushed" in notes(kimbox)[0]
    paths.mirrors_dir().rename(work / "away")
    code, out, _ = kimbox("lock", "--check", "--remote", "--json")
    (problem,) = clirun.error(out, "lock")["problems"]
    assert 3 == code
    assert f"no longer has the commit {old}" in problem["message"]
    assert f"    commit: {old}" == (work / "kimbox.lock").read_text().splitlines()[problem["line"] - 1].rstrip()


def test_a_dry_run_says_what_would_move(kimbox: Kimbox, work: Path) -> None:
    """With the log between; the file stays, and is made afterwards as it was said."""
    source = work.parent / "code"
    old = makebox.git(source, "rev-parse", "HEAD")
    new = makebox.commit(source, {"a": "two\n"})
    text = (work / "kimbox.lock").read_text()
    code, out, _ = kimbox("lock", "--update", "code", "--dry-run")
    assert 0 == code
    assert f"code: {old[:12]} -> {new[:12]}\n  + {new[:7]} work\n" in out
    assert f"would write {work}/kimbox.lock" in out
    assert text == (work / "kimbox.lock").read_text()
    code, out, _ = kimbox("lock", "--update-all", "--dry-run", "--json")
    result = clirun.result(out, "lock")
    assert (False, True, {"code": {"old": old, "new": new}}) == (result["written"], result["dry_run"], result["moved"])
    assert ["work"] == [line.split(" ", 1)[1] for line in result["diff"]["repositories"]["code"]["log"]["came"]]
    (work / "kimbox.lock").unlink()
    assert "would write" in kimbox("lock", "--dry-run")[1]
    assert not (work / "kimbox.lock").exists()


@pytest.mark.parametrize(
    "arguments", [["--check", "--update", "code"], ["--check", "--update-all"], ["--check", "--dry-run"], ["--remote"]]
)
def test_options_that_cannot_go_together(kimbox: Kimbox, work: Path, arguments: list[str]) -> None:
    """They are a usage error."""
    assert 2 == kimbox("lock", *arguments)[0]


def test_locked_takes_the_lock_as_it_stands(work: Path) -> None:
    """With every commit in a mirror, the folder's too, even on a machine that has none yet."""
    box = load_box(work / "kimbox.yaml")
    before = (work / "kimbox.lock").stat()
    paths.mirrors_dir().rename(work / "away")
    found = pins.lock_for(Project(box, frozen=True))
    lock, mirrors = found.lock, found.mirrors
    assert lock == read_lock(work / "kimbox.lock")
    assert all(mirrors[name].holds(pin.commit) for name, pin in lock.repositories.items())
    after = (work / "kimbox.lock").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_offline_takes_mirrors_alone(work: Path) -> None:
    """What they lack is named, though the server would have it; without a lock there is nothing to take."""
    box = load_box(work / "kimbox.yaml")
    lock = pins.lock_for(Project(box, offline=True)).lock
    commit = lock.repositories["code"].commit
    paths.mirrors_dir().rename(work / "away")
    with refused(GitError, "offline", repository="code", commit=commit):
        pins.lock_for(Project(box, offline=True))
    (work / "kimbox.lock").unlink()
    with refused(GitError, "offline", repository="code"):
        pins.lock_for(Project(box, offline=True))
    assert not (work / "kimbox.lock").exists()


def test_offline_makes_no_image_from_the_network(tmp_path: Path) -> None:
    """What is fetched from elsewhere is named, and so are packages that the cache lacks; what is here is taken."""
    box, digest = makebox.make_box(tmp_path), "sha256:" + "a" * 64
    far = attrs.evolve(box, image=RemoteImage("https://images.invalid/x.box", digest))
    with refused(ImageError, "offline", image="a" * 64):
        obtain.ensure(far, None, offline=True)
    with refused(ImageError, "file-not-found", path=f"{tmp_path}/disk.qcow2"):
        obtain.ensure(attrs.evolve(box, image=RemoteImage(f"{tmp_path}/disk.qcow2", digest)), None, offline=True)
    versions = {"one": LockedPackage("1.0", "all", "a" * 64)}
    with refused(ImageError, "offline", packages="one"):
        obtain.ensure(box, attrs.evolve(tinyimage.LOCKED, versions=versions), offline=True)


def test_other_packages_are_told_where_the_lock_has_them(work: Path, kimbox: Kimbox, world: Path) -> None:
    """A package more in the spec: `up` and --check say so, `lock` mends it."""
    write_spec(world, more="image: {packages: [gfortran]}\n")
    code, _, err = kimbox("lock", "--check")
    assert 3 == code
    assert "the image asks for other packages than the lock was made for" in err
    assert re.search(r"kimbox\.lock:\d+:\d+: the image asks", err)
    code, _, err = kimbox("build")
    assert (3, True) == (code, "asks for other packages" in err)
    assert 0 == kimbox("lock")[0]
    assert 0 == kimbox("lock", "--check")[0]


@pytest.mark.parametrize(
    "line",
    ["apt: 1.0", "apt: 1.0 all xyz", "'../apt': 1.0 all " + "a" * 64, "apt: -1 all " + "a" * 64, "apt: [1]"],
)
def test_a_package_edited_wrongly_is_refused_at_its_line(work: Path, kimbox: Kimbox, line: str) -> None:
    """With file, line and column."""
    path = work / "kimbox.lock"
    text = path.read_text().replace("  versions: {}\n", f"  versions:\n    {line}\n")
    path.write_text(text)
    number = text[: text.index(line)].count("\n") + 1
    code, _, err = kimbox("lock", "--check")
    assert 3 == code
    assert re.search(rf"kimbox\.lock:({number}|{number - 1}):\d+: packages\.versions", err), err


def test_a_check_is_quick(kimbox: Kimbox, world: Path) -> None:
    """Five repositories, one of them a folder: far below the half second that it may take."""
    text = SPEC.format(code=world / "code", ref="main")
    makebox.make_repository(world / "code")
    (world / "work/setup").mkdir()
    (world / "work/setup/setup").write_text("#!/bin/sh\n")
    (world / "work/setup/setup").chmod(0o755)
    for number in range(3):
        makebox.make_repository(world / f"more{number}")
        text += f'  more{number}: {{url: "file://{world}/more{number}"}}\n'
    (world / "work/kimbox.yaml").write_text(text)
    assert 0 == kimbox("lock")[0]
    times = []
    for _ in range(3):
        started = time.monotonic()
        assert 0 == kimbox("lock", "--check")[0]
        times.append(time.monotonic() - started)
    assert min(times) < 2  # a loaded machine is slow


def test_a_damaged_lock_is_a_spec_error(kimbox: Kimbox, work: Path) -> None:
    """As for every other verb."""
    (work / "kimbox.lock").write_text("lock: 1\n")
    for arguments in (["lock", "--check"], ["up", "--locked"], ["lock", "--dry-run"]):
        assert 3 == kimbox(*arguments)[0]
    assert issubclass(SpecError, KimboxError)
