"""Tags and origins: what a box has of them is what a clone has, and the lock alone decides it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs
import makebox
import ownhome
import pytest
from fakeguest import FakeGuest, box_with, delivery, guest, needs_namespace, provision, step
from refused import refused

from kimbox import paths
from kimbox.errors import SpecError
from kimbox.lock.diff import as_json, as_text, diff
from kimbox.lock.git import tags
from kimbox.lock.git.bundle import write_bundle
from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.tags import Tag
from kimbox.lock.lockfile import Lock, PinnedRepository, format_lock, make_lock, read_lock
from kimbox.render.manifest import render_manifest
from kimbox.spec.model import Box, Repository

__all__ = ["guest"]

home = ownhome.home  # a fixture

CODE = "/home/vagrant/src/code"


def of(source: Path, ref: str = "main") -> Mirror:
    return Mirror.of(Repository("code", f"file://{source}", False, ref, "/opt/code"))


def describe(folder: Path, *options: str) -> str:
    """What `git describe` gives at home."""
    return makebox.git(folder, "describe", *options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with an annotated tag, a lightweight tag of the next commit, and tags elsewhere."""
    folder = tmp_path / "source"
    makebox.make_repository(folder)
    makebox.git(folder, "tag", "-a", "v1.0-rc1", "-m", "candidate")
    makebox.git(folder, "-c", "user.name=later", "tag", "-a", "v1.0", "-m", "one")
    makebox.commit(folder, {"a": "two\n"})
    makebox.git(folder, "tag", "build/7")
    makebox.git(folder, "checkout", "-q", "-b", "side")
    makebox.commit(folder, {"b": "x\n"})
    makebox.git(folder, "tag", "-a", "on-the-side", "-m", "no")
    makebox.git(folder, "tag", "a-file", makebox.git(folder, "rev-parse", "HEAD:b"))
    makebox.git(folder, "checkout", "-q", "main")
    makebox.commit(folder, {"a": "three\n"})
    return folder


def test_tags_of_the_history_are_found(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags of the pinned commit and of those before it, with their objects; of too many, the nearest."""
    code = of(source)
    pin = code.resolve("main")
    first, second = (makebox.git(source, "rev-parse", ref) for ref in ("v1.0^{commit}", "build/7"))
    found = tags.collect(code, pin.commit)
    assert found == {
        "build/7": Tag(second),
        "v1.0": Tag(first, makebox.git(source, "rev-parse", "v1.0")),
        "v1.0-rc1": Tag(first, makebox.git(source, "rev-parse", "v1.0-rc1")),
    }
    assert set(tags.collect(code, first)) == {"v1.0", "v1.0-rc1"}
    code.resolve("side")
    assert tags.collect(code, pin.commit) == found
    monkeypatch.setattr(tags, "MAX_TAGS", 2)
    assert set(tags.collect(code, pin.commit)) == {"build/7", "v1.0"}


def test_a_bundle_has_these_tags_alone(source: Path, tmp_path: Path) -> None:
    """With and without them, whatever tags the mirror has; a tag that is not in the history is refused."""
    code = of(source)
    commit = code.resolve("main").commit
    found = {name: tag.target for name, tag in tags.collect(code, commit).items()}
    git(["update-ref", "refs/tags/build", commit], git_dir=code.path)  # no tag build/7 can be beside it
    for sent in (found, {}, {"v1.0": found["v1.0"]}):
        write_bundle(code, commit, tmp_path / "b", sent)
        heads = git(["bundle", "list-heads", tmp_path / "b"], git_dir=code.path).text.splitlines()
        assert {line.split()[1] for line in heads} == {"refs/kimbox/pin", *(f"refs/tags/{name}" for name in sent)}
    side = code.resolve("side").commit
    with refused(GitError, "lock-disagrees"):
        write_bundle(code, commit, tmp_path / "b", {"x": side})


def test_a_lock_keeps_tags_of_any_name(tmp_path: Path) -> None:
    """Names that YAML could take for numbers and booleans, and characters outside of ASCII. Others are refused."""
    names = ["1.0", "on", "1e3", "2026-01-01", "x" * 240, "release/ä", "null", "@x", "=", "'"]
    pinned = PinnedRepository("https://x.org/y", "main", "a" * 40, "b" * 40, {}, {n: Tag("c" * 40) for n in names})
    path = tmp_path / "kimbox.lock"
    path.write_text(format_lock(Lock("d" * 64, None, {"code": pinned})))
    assert read_lock(path).repositories["code"] == pinned
    for bad in ("a..b", "-x", "a.lock", "e" * 40):
        text = format_lock(Lock("d" * 64, None, {"code": attrs.evolve(pinned, tags={bad: Tag("c" * 40)})}))
        path.write_text(text)
        with refused(SpecError, "bad-lock"):
            read_lock(path)


def test_a_tag_that_moved_changes_no_lock(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a machine that has the tag object, nothing changes; on another one, the name stays at its commit."""
    code = of(source)
    commit = code.resolve("main").commit
    found = tags.collect(code, commit)
    makebox.git(source, "tag", "-f", "-a", "v1.0", "-m", "moved", "main")
    makebox.git(source, "tag", "-d", "build/7")
    makebox.git(source, "reflog", "expire", "--expire=now", "--all")
    makebox.git(source, "gc", "-q", "--prune=now")
    assert tags.available(code, found) == found
    other = attrs.evolve(code, path=tmp_path / "other.git")
    other.ensure(commit)
    assert tags.available(other, found) == {**found, "v1.0": Tag(found["v1.0"].commit)}
    with refused(GitError, "offline"):
        tags.available(attrs.evolve(code, path=tmp_path / "third.git", offline=True), found)


def test_a_check_on_the_server_reports_moved_tags(source: Path, tmp_path: Path) -> None:
    """A tag that was moved, one that was replaced at the same commit, and one that was removed."""
    code = of(source)
    commit = code.resolve("main").commit
    found = tags.collect(code, commit)
    assert tags.changed(code, found) == []
    makebox.git(source, "tag", "-f", "v1.0", "main")
    makebox.git(source, "tag", "-f", "-a", "v1.0-rc1", "-m", "again", "v1.0-rc1^{commit}")
    makebox.git(source, "tag", "-d", "build/7")
    first = found["v1.0"].commit
    assert tags.changed(code, found) == [
        "repository code: the server no longer has the tag `build/7` of the lock",
        f"repository code: the tag `v1.0` was moved from {first} to {commit}",
        "repository code: the tag `v1.0-rc1` was replaced, at the same commit",
    ]


def test_a_difference_of_tags_is_one_line() -> None:
    """Tags that came, went and moved; of many, the first and the number of the others."""
    old = {"gone": Tag("a" * 40), "same": Tag("a" * 40), "moved": Tag("a" * 40)}
    new = {"came": Tag("a" * 40), "same": Tag("a" * 40), "moved": Tag("b" * 40)}

    def lock(near: dict[str, Tag]) -> Lock:
        return Lock("d" * 64, None, {"x": PinnedRepository("https://x.org", "main", "a" * 40, "b" * 40, {}, near)})

    assert as_text(diff(lock(old), lock(new)), {}) == ["x: tags +came -gone *moved"]
    many = {f"t{n:03}": Tag("a" * 40) for n in range(100)}
    assert as_text(diff(lock({}), lock(many)), {})[0].endswith("+t019 (80 more)")
    assert as_json(diff(lock(old), lock(new)), {})["repositories"]["x"]["new"]["tags"]["came"]["commit"] == "a" * 40


def test_a_commit_can_be_locked_without_its_server(source: Path) -> None:
    """If the mirror has it, the tags are left out. A branch needs the server."""
    commit = of(source).resolve("main").commit
    source.rename(source.parent / "gone")
    assert tags.collect(of(source, commit), commit) == {}
    with pytest.raises(GitError):
        tags.collect(of(source), commit)


def test_origin_and_trust_are_in_the_manifest(tmp_path: Path) -> None:
    """A folder has no origin. Only checkouts that belong to root are trusted by everybody."""
    box = box_with(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x").touch()
    repositories = (*box.repositories, Repository("plain", str(tmp_path / "folder"), True, "HEAD", "/opt/plain"))
    box = attrs.evolve(box, repositories=repositories)
    manifest = {name: data.decode() for name, (data, _) in render_manifest(box, make_lock(box)).items()}
    assert manifest["origins"] == f"setup\t.\tfile://{tmp_path}/setup\ncode\t.\tfile://{tmp_path}/code\n"
    assert manifest["gitconfig"] == '[safe]\n\tdirectory = "/usr/local/src/setup"\n\tdirectory = "/opt/plain"\n'


# --- in the guest


def in_code(guest: FakeGuest, *words: str) -> str:
    """The output of git in the checkout of `code`."""
    done = guest.run("git", "-C", CODE, *words)
    return (done.stdout or done.stderr).strip()


def box_of(tmp_path: Path, source: Path) -> Box:
    box = box_with(tmp_path, step("count", "echo x >>/var/count"))
    code = attrs.evolve(box.repositories[1], url=f"file://{source}")
    return attrs.evolve(box, repositories=(box.repositories[0], code))


@needs_namespace
def test_git_describe_gives_what_it_gives_at_home(guest: FakeGuest, source: Path, tmp_path: Path) -> None:
    """With annotated tags alone, with all tags and with a pattern; `origin` says where the commit came from."""
    assert provision(guest, tmp_path, box_of(tmp_path, source)) == 0, guest.log()
    for options in ((), ("--tags",), ("--tags", "--long", "--match", "v*"), ("--always", "--dirty")):
        assert in_code(guest, "describe", *options) == describe(source, *options)
    assert in_code(guest, "remote", "get-url", "origin") == f"file://{source}"
    assert in_code(guest, "tag", "-l").splitlines() == ["build/7", "v1.0", "v1.0-rc1"]
    assert in_code(guest, "status", "--porcelain") == ""
    assert '"/usr/local/src/setup"' in guest.path("/var/lib/kimbox/gitconfig").read_text()
    assert in_code(guest, "fsck", "--connectivity-only", "--no-dangling").count("error") == 0


@needs_namespace
def test_tags_follow_the_lock_and_nothing_runs_again(guest: FakeGuest, source: Path, tmp_path: Path) -> None:
    """New tags of the same commit arrive, removed ones go, tags and branches of the box stay, files are untouched."""
    box = box_of(tmp_path, source)
    assert provision(guest, tmp_path, box) == 0
    in_code(guest, "tag", "mine")
    in_code(guest, "branch", "work")
    in_code(guest, "pack-refs", "--all")
    guest.path(f"{CODE}/built").write_text("x")
    makebox.git(source, "tag", "-d", "build/7")
    makebox.git(source, "tag", "-a", "v2", "-m", "two", "main")
    assert provision(guest, tmp_path, box) == 0, guest.log()
    assert in_code(guest, "tag", "-l").splitlines() == ["mine", "v1.0", "v1.0-rc1", "v2"]
    assert in_code(guest, "describe") == "v2"
    assert in_code(guest, "rev-parse", "--verify", "work") == makebox.git(source, "rev-parse", "main")
    assert (guest.path(f"{CODE}/built").exists(), guest.path("/var/count").read_text()) == (True, "x\n")
    for tag in ("v1.0", "v1.0-rc1", "v2"):
        makebox.git(source, "tag", "-d", tag)
    assert provision(guest, tmp_path, box) == 0
    assert in_code(guest, "tag", "-l") == "mine"


@needs_namespace
def test_the_origin_follows_the_spec(guest: FakeGuest, source: Path, tmp_path: Path) -> None:
    """Also after a power cut in `git config`, which leaves its lock."""
    assert provision(guest, tmp_path, box_of(tmp_path, source)) == 0
    moved = source.rename(tmp_path / "moved")
    guest.path(f"{CODE}/.git/config.lock").touch()
    assert provision(guest, tmp_path, box_of(tmp_path, moved)) == 0, guest.log()
    assert in_code(guest, "remote", "get-url", "origin") == f"file://{moved}"


@needs_namespace
def test_a_new_root_has_the_tags_without_the_host(guest: FakeGuest, source: Path, tmp_path: Path) -> None:
    """They come from /persistent, and the guest answers that it has them."""
    box = box_of(tmp_path, source)
    assert provision(guest, tmp_path, box) == 0
    _, tar = delivery(tmp_path, box)
    tar.unlink()
    guest.new_root()
    assert guest.run("rm", "-rf", CODE).ok
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert in_code(guest, "describe", "--tags") == describe(source, "--tags")


@needs_namespace
def test_submodules_are_as_after_a_clone(guest: FakeGuest, source: Path, tmp_path: Path) -> None:
    """They are registered and have their origin, so that `git submodule update` has nothing to do."""
    makebox.make_repository(tmp_path / "lib", {"x": "1\n"})
    allow = ("-c", "protocol.file.allow=always")
    makebox.git(source, *allow, "submodule", "-q", "add", f"file://{tmp_path}/lib", "deep/lib")
    makebox.git(source, "commit", "-qm", "with a submodule")
    box = box_of(tmp_path, source)
    assert provision(guest, tmp_path, box) == 0, guest.log()
    assert in_code(guest, "config", "submodule.deep/lib.url") == f"file://{tmp_path}/lib"
    assert in_code(guest, "-C", "deep/lib", "remote", "get-url", "origin") == f"file://{tmp_path}/lib"
    assert guest.run("git", "-C", CODE, "submodule", "update", "--init", "--recursive").ok
    assert in_code(guest, "status", "--porcelain") == ""


@needs_namespace
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")
def test_every_account_can_run_git_in_checkouts_of_root(guest: FakeGuest, tmp_path: Path) -> None:
    """With the configuration of the image; without it git refuses. A checkout of a user is not trusted by others."""
    box = box_with(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    guest.path("/etc/gitconfig").unlink(missing_ok=True)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "git", "-C")
    setup, commit = "/usr/local/src/setup", makebox.git(tmp_path / "setup", "rev-parse", "HEAD")
    assert "dubious ownership" in guest.run(*nobody, setup, "rev-parse", "HEAD").stderr
    shutil.copy(paths.provisioners_dir() / "provision/root/etc/gitconfig", guest.path("/etc/gitconfig"))
    assert guest.run(*nobody, setup, "rev-parse", "HEAD").stdout.strip() == commit
    assert "dubious ownership" in guest.run(*nobody, CODE, "rev-parse", "HEAD").stderr
