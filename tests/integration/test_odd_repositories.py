"""Repositories as people have them: shallow clones, damaged mirrors, SHA-256, HEADs without a branch, old commits."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import makebox
import ownhome
import pytest
from refused import refused

from kimbox.errors import SpecError
from kimbox.lock.git import reasons
from kimbox.lock.git.bundle import write_bundle
from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.mirror import Mirror
from kimbox.spec.load import load_box
from kimbox.spec.model import Repository

home = ownhome.home  # a fixture


def of(url: str | Path, *, folder: bool = False) -> Mirror:
    return Mirror.of(Repository("code", str(url) if folder else f"file://{url}", folder, "main", "/opt/code"))


@pytest.fixture
def thin(tmp_path: Path) -> Path:
    """A shallow clone of a repository with two commits."""
    makebox.make_repository(tmp_path / "full")
    makebox.commit(tmp_path / "full", {"a": "two\n"})
    makebox.git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tmp_path}/full", "thin")
    return tmp_path / "thin"


def test_a_shallow_clone_is_refused_until_it_is_complete(thin: Path, tmp_path: Path) -> None:
    """By branch and by commit, with the command that completes it; nothing of it counts as held afterwards."""
    code, commit = of(thin), makebox.git(thin, "rev-parse", "HEAD")
    for _ in range(2):
        for ref in ("main", "HEAD", commit):
            with refused(GitError, "shallow-repository", repository="code") as caught:
                code.resolve(ref)
            assert f"git -C {thin} fetch --unshallow" in str(caught.value.hint)
        assert not code.holds(commit)
    makebox.git(thin, "fetch", "-q", "--unshallow")
    assert code.resolve(commit).commit == commit
    write_bundle(code, commit, tmp_path / "b")
    makebox.git(tmp_path, "init", "-q", "--bare", "c.git")
    makebox.git(tmp_path / "c.git", "fetch", "-q", str(tmp_path / "b"), "refs/kimbox/pin")
    assert makebox.git(tmp_path / "c.git", "rev-list", "--count", "FETCH_HEAD") == "2"


def test_a_mirror_that_an_older_kimbox_spoilt_repairs_itself(thin: Path, tmp_path: Path) -> None:
    """The ref of a commit without its history is removed once, complete commits stay, and the commit is fetched."""
    code, commit = of(thin), makebox.git(thin, "rev-parse", "HEAD")
    with pytest.raises(GitError):
        code.resolve(commit)
    makebox.make_repository(tmp_path / "other", {"b": "x\n"})
    git(["fetch", "-q", str(tmp_path / "other"), "+main:refs/kimbox/other"], git_dir=code.path)
    git(["update-ref", f"refs/kimbox/{commit}", commit], git_dir=code.path)
    (code.path / "kimbox-whole").unlink()
    assert not code.holds(commit)
    assert git(["for-each-ref", "--format=%(refname)"], git_dir=code.path).text == "refs/kimbox/other"
    makebox.git(thin, "fetch", "-q", "--unshallow")
    assert code.ensure(commit).commit == commit
    write_bundle(code, commit, tmp_path / "b")


def test_a_mirror_that_lost_objects_is_fetched_again(tmp_path: Path) -> None:
    """A lost pack with a part of the history costs a fetch. Without the source, the error names the mirror."""
    makebox.make_repository(tmp_path / "source")
    code = of(tmp_path / "source")
    code.resolve("main")
    packs = list((code.path / "objects/pack").iterdir())
    commit = makebox.commit(tmp_path / "source", {"a": "two\n"})
    code.resolve("main")
    for pack in packs:
        pack.unlink()
    write_bundle(code, commit, tmp_path / "b")
    assert git(["bundle", "verify", "-q", tmp_path / "b"], git_dir=code.path).code == 0
    for pack in set((code.path / "objects/pack").iterdir()):
        pack.unlink()
    git(["fetch", "-q", "--depth=1", f"file://{tmp_path}/source", "main"], git_dir=code.path)
    (code.path / "shallow").unlink()
    shutil.rmtree(tmp_path / "source")
    with refused(GitError, "mirror-damaged", commit=commit) as caught:
        write_bundle(code, commit, tmp_path / "b2")
    assert str(code.path) in str(caught.value.hint)


def test_a_head_without_a_branch_is_not_empty(tmp_path: Path) -> None:
    """The branches that exist are named; only a repository without any ref is called empty."""
    makebox.make_repository(tmp_path / "source")
    makebox.git(tmp_path, "init", "-q", "--bare", "-b", "master", "head.git")
    with refused(GitError, "ref-not-found", ref="HEAD") as caught:
        of(tmp_path / "head.git").resolve("HEAD")
    assert "is empty" in caught.value.message
    makebox.git(tmp_path / "source", "push", "-q", "../head.git", "main")
    with refused(GitError, "no-default-branch", ref="HEAD") as caught:
        of(tmp_path / "head.git").resolve("HEAD")
    assert "HEAD names a branch that does not exist" in caught.value.message
    assert "main" in str(caught.value.hint)


def test_sha256_repositories_are_named(tmp_path: Path) -> None:
    """By HEAD, by branch, by a commit of 64 digits and by one of 40."""
    makebox.git(tmp_path, "init", "-q", "--object-format=sha256", "r")
    commit = makebox.commit(tmp_path / "r", {"a": "x\n"})
    for ref in ("HEAD", "main", commit):
        with refused(GitError, "unsupported-repository"):
            of(tmp_path / "r").resolve(ref)
    with refused(GitError, "repository-unreachable") as caught:
        of(tmp_path / "r").resolve("1" * 40)
    assert "SHA-1" in str(caught.value.hint)


def test_any_full_name_of_a_ref_is_resolved(tmp_path: Path) -> None:
    """A pull request of a hosting service is a ref beside branches and tags."""
    first = makebox.make_repository(tmp_path / "source")
    makebox.git(tmp_path / "source", "update-ref", "refs/pull/12/head", first)
    assert of(tmp_path / "source").resolve("refs/pull/12/head").commit == first
    with refused(GitError, "ref-not-found"):
        of(tmp_path / "source").resolve("refs/pull/13/head")


def write_commit(source: Path, author: str) -> None:
    """Makes a commit with this line of its author the branch `main`."""
    tree = makebox.git(source, "rev-parse", "HEAD^{tree}")
    raw = f"tree {tree}\nauthor {author}\ncommitter A B <a@example.org> 1100000000 +0000\n\nold\n"
    (source / "raw").write_text(raw)
    commit = makebox.git(source, "hash-object", "-t", "commit", "-w", "--literally", "raw")
    makebox.git(source, "update-ref", "refs/heads/main", commit)


def test_the_check_of_objects_says_how_to_pass_it(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed author is refused with the setting that accepts it, and that setting works. By commit, too."""
    makebox.make_repository(tmp_path / "source")
    write_commit(tmp_path / "source", "<a@example.org> 1100000000 +0000")
    commit = makebox.git(tmp_path / "source", "rev-parse", "main")
    for ref in ("main", commit):
        with refused(GitError, "repository-unreachable") as caught:
            of(tmp_path / "source").resolve(ref)
        assert "missingNameBeforeEmail" in caught.value.message
        assert "`git config --global fetch.fsck.missingNameBeforeEmail ignore`" in str(caught.value.hint)
    (tmp_path / "config").write_text('[fetch "fsck"]\n\tmissingNameBeforeEmail = ignore\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    assert of(tmp_path / "source").resolve("main").commit == commit


def test_a_dangerous_object_gets_no_such_hint() -> None:
    """A tree with a .git may write hooks in a checkout: no hint names the setting that accepts it."""
    reason = f"error: object {'a' * 40}: hasDotgit: contains '.git'\nfatal: fsck error in packed object"
    assert "fetch.fsck" not in str(reasons.hint_for(reason))


def test_the_reason_of_git_is_whole() -> None:
    """Progress is left out and everything else is kept, in its order."""
    lines = ["fatal: detected dubious ownership in repository at '/r/.git'", "To add an exception:", "",
             "\tgit config --global --add safe.directory /r/.git", "fatal: Could not read.", "", "and"]  # fmt: skip
    noise = ["remote: Counting objects: 100% (3/3), done.        ", "remote: Total 3 (delta 0), reused 0 (delta 0)",
             "Receiving objects:  50% (1/2)", "remote: Enumerating objects: 3, done."]  # fmt: skip
    reason = reasons.reason_of("\n".join([*noise, *lines, *noise]))
    assert reason.splitlines() == [line for line in lines if line]
    assert "`git config --global --add safe.directory /r/.git`" in str(reasons.hint_for(reason))
    assert len(reasons.reason_of("x\n" * 10_000).splitlines()) == reasons.MAX_REASON_LINES


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another account")
def test_a_repository_of_another_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git's first line, its remedy and a hint with the command are shown."""
    makebox.make_repository(tmp_path / "source")
    for path in [tmp_path / "source", *(tmp_path / "source").rglob("*")]:
        os.lchown(path, 65534, 65534)
    monkeypatch.delenv("SUDO_UID", raising=False)
    with refused(GitError, "repository-unreachable") as caught:
        of(tmp_path / "source").resolve("main")
    assert "detected dubious ownership" in caught.value.message
    assert f"safe.directory {tmp_path}/source/.git`" in str(caught.value.hint)


def test_what_gitignore_excludes_never_refuses_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repositories, sockets, FIFOs and absolute links in ignored places are left out, wherever the .gitignore is."""
    folder = tmp_path / "setup"
    (folder / "sub/.venv").mkdir(parents=True)
    (folder / "setup").write_text("#!/bin/sh\n")
    (folder / ".gitignore").write_text(".terraform/\n*.sock\n/clone\n.gnupg/\n")
    (folder / "sub/.venv/.gitignore").write_text("*\n")
    pin = of(folder, folder=True).resolve("HEAD")
    for name in (".terraform/modules/vpc", "clone", "sub/.venv/src/x"):
        (folder / name / ".git").mkdir(parents=True)
    (folder / ".gnupg").mkdir()
    os.mkfifo(folder / ".gnupg/fifo")
    (folder / ".terraform/python").symlink_to("/usr/bin/python3")
    with socket.socket(socket.AF_UNIX) as agent:
        monkeypatch.chdir(folder / "sub")  # the path of a socket must be short
        agent.bind("agent.sock")
    assert of(folder, folder=True).resolve("HEAD") == pin
    os.mkfifo(folder / "sub/fifo")
    with refused(GitError, "folder-content") as caught:
        of(folder, folder=True).resolve("HEAD")
    assert "sub/fifo" in caught.value.message


def test_a_gitignore_cannot_hide_the_repository_around_it(tmp_path: Path) -> None:
    """`.git` in .gitignore does not turn a work tree into a plain folder."""
    makebox.make_repository(tmp_path / "setup", {".gitignore": ".git\n", "setup": "#!/bin/sh\n"})
    with refused(GitError, "folder-content") as caught:
        of(tmp_path / "setup", folder=True).resolve("HEAD")
    assert f"`git -C {tmp_path}/setup remote get-url origin`" in str(caught.value.hint)


def test_a_repository_beside_the_spec_is_shared_by_its_url(tmp_path: Path) -> None:
    """The hint for ../lattice names the command that prints the URL; a plain folder has no such hint."""
    makebox.make_repository(tmp_path / "lattice")
    (tmp_path / "p").mkdir()
    (tmp_path / "data").mkdir()
    spec = "kimbox: 1\nname: x\nbase: [_defaults/debian.yaml]\nrepositories: {a: {url: ../%s}}\n"
    hints = []
    for name in ("lattice", "data"):
        (tmp_path / "p/kimbox.yaml").write_text(spec % name)
        with refused(SpecError, "bad-spec") as caught:
            load_box(tmp_path / "p/kimbox.yaml")
        hints.append(str(caught.value.problems[0].hint))
        assert caught.value.problems[0].code == "outside-spec-folder"
    assert f"`git -C {tmp_path}/lattice remote get-url origin`" in hints[0]
    assert "git" not in hints[1]


def test_a_folder_is_the_same_from_each_of_its_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder of the caller has no effect on the content that is pinned."""
    folder = tmp_path / "setup"
    (folder / "sub").mkdir(parents=True)
    for name in ("setup", "sub/file"):
        (folder / name).write_text(name)
    pin = of(folder, folder=True).resolve("HEAD")
    monkeypatch.chdir(folder / "sub")
    assert of(folder, folder=True).resolve("HEAD") == pin
