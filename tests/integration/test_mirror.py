"""Mirrors, with real git and hostile repositories."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import makebox
import ownhome
import pytest
from refused import refused

from kimbox import paths
from kimbox.errors import StateError
from kimbox.files import locked
from kimbox.lock.git import bare, command, mirror
from kimbox.lock.git.bundle import write_bundle
from kimbox.lock.git.command import SCRUBBED_ENV, GitError, git, redact
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.refs import Offered, check_url
from kimbox.run import run
from kimbox.spec.model import Repository

home = ownhome.home  # a fixture


def of(url: str | Path, *, folder: bool = False) -> Mirror:
    return Mirror.of(Repository("code", str(url) if folder else f"file://{url}", folder, "main", "/opt/code"))


def test_branch_tag_head_and_commit_are_resolved(tmp_path: Path) -> None:
    """An annotated tag is peeled, HEAD is the default branch, full refs work, the tree is that of the commit."""
    source = tmp_path / "source"
    first = makebox.make_repository(source)
    makebox.git(source, "tag", "-a", "v1", "-m", "one")
    makebox.git(source, "tag", "light")
    second = makebox.commit(source, {"a": "two\n"})
    code = of(source)
    asked = {ref: code.resolve(ref).commit for ref in ("main", "v1", "light", "HEAD", "refs/tags/v1", first)}
    assert asked == {**dict.fromkeys(["v1", "light", "refs/tags/v1", first], first), "main": second, "HEAD": second}
    assert code.resolve("main").tree == makebox.git(source, "rev-parse", "HEAD^{tree}")


def test_what_is_pinned_needs_no_source_any_more(tmp_path: Path) -> None:
    """A commit in the mirror stays, whatever becomes of the source."""
    source = tmp_path / "source"
    first = makebox.make_repository(source)
    code = of(source)
    pin = code.resolve("main")
    makebox.commit(source, {"a": "two\n"})
    source.rename(tmp_path / "gone")
    assert code.ensure(first) == pin
    assert code.holds(first)
    with pytest.raises(GitError, match=r"repository code \(file://.*cannot be read"):
        code.resolve("main")


def test_a_missing_ref_is_named_with_what_there_is(tmp_path: Path) -> None:
    """Repository, URL and ref are told, and what was probably meant."""
    source = tmp_path / "source"
    makebox.make_repository(source)
    makebox.git(source, "branch", "stable")
    code = of(source)
    for ref, hint in {
        "stabel": "did you mean stable?",
        "1234567": "all of its 40 digits",
        "zzz": "it has: main, stable",
    }.items():
        with pytest.raises(
            GitError, match=rf"repository code \(file://.*source\) has no branch, tag or commit {ref}"
        ) as caught:
            code.resolve(ref)
        assert hint in str(caught.value.hint)


def test_a_name_of_branch_and_tag_is_refused_if_they_differ(tmp_path: Path) -> None:
    """Which of the two is meant is not guessed."""
    source = tmp_path / "source"
    makebox.make_repository(source)
    makebox.git(source, "tag", "v1")
    makebox.commit(source, {"a": "two\n"})
    makebox.git(source, "branch", "v1")
    with refused(GitError, "ref-ambiguous") as caught:
        of(source).resolve("v1")
    assert caught.value.hint == "write refs/heads/v1 or refs/tags/v1"


def test_a_force_pushed_commit_that_is_gone_is_named(tmp_path: Path) -> None:
    """The locked commit no longer exists: the error names it, and says how to move on."""
    source = tmp_path / "source"
    first = makebox.make_repository(source)
    makebox.git(source, "commit", "--amend", "-qm", "other")
    makebox.git(source, "reflog", "expire", "--expire=now", "--all")
    makebox.git(source, "gc", "-q", "--prune=now")
    with refused(GitError, "commit-not-found", commit=first) as caught:
        of(source).ensure(first)
    assert "force-pushed" in str(caught.value.hint)
    assert "kimbox lock --update code" in str(caught.value.hint)


@pytest.mark.parametrize(
    "url",
    ["ext::sh -c touch% /tmp/owned", "fd::17", "-u", "--upload-pack=touch /tmp/owned", "ssh://-oProxyCommand=x/y",
     "a\nb", "", "foo://x/y", "relative/path", "https::x", "-x:y", "https://host", "https://a:b@host/x", "git@host:", "file://host/x"],
)  # fmt: skip
def test_hostile_urls_never_reach_git(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers, options and odd characters are refused before git sees them."""
    monkeypatch.setattr(mirror, "git", None)
    with pytest.raises(GitError):
        check_url("code", url)


def test_git_itself_refuses_helpers_too(tmp_path: Path) -> None:
    """Should a URL rewrite (insteadOf) lead to ext::, git does not follow."""
    marker = tmp_path / "owned"
    with pytest.raises(GitError, match="transport 'ext' not allowed"):
        git(["ls-remote", "--", f"ext::touch {marker}"])
    assert not marker.exists()


@pytest.mark.parametrize(
    "url", ["https://x/y", "ssh://git@x:22/y", "git@example.org:a/b.git", "/srv/x.git", "file:///srv/x"]
)
def test_ordinary_urls_pass(url: str) -> None:
    """What people write."""
    check_url("code", url)


@pytest.mark.parametrize(
    "ref",
    ["-x", "--upload-pack=x", "a..b", "a b", "a:b", "a~1", "a^", "", "@", "a\nb", "x.lock", "/x", "@{u}", "+x",
     "x" * 251],
)  # fmt: skip
def test_refs_like_options_or_expressions_are_refused(tmp_path: Path, ref: str) -> None:
    """A ref is a name."""
    with refused(GitError, "bad-ref"):
        of(tmp_path / "nowhere").resolve(ref)


def test_credentials_are_never_shown() -> None:
    """Neither in a repository's name nor in git's words."""
    assert redact("fatal: https://me:secret@x.org/y and ssh://git@h/z") == "fatal: https://x.org/y and ssh://h/z"
    shown = Mirror.of(Repository("code", "https://me:secret@x.invalid/y", False, "main", "/opt")).where
    assert "secret" not in shown


def test_the_environment_of_an_outer_git_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kimbox may run inside a git hook or alias."""
    makebox.make_repository(tmp_path / "source")
    for name in SCRUBBED_ENV:
        monkeypatch.setenv(name, str(tmp_path / "nonsense"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.bare=nonsense'")
    assert of(tmp_path / "source").resolve("main").commit


def test_the_users_configuration_applies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """insteadOf, and with it credential helpers, are the user's."""
    commit = makebox.make_repository(tmp_path / "source")
    (tmp_path / "config").write_text(f'[url "file://{tmp_path}/"]\n\tinsteadOf = https://mirror.invalid/\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    repository = Repository("code", "https://mirror.invalid/source", False, "main", "/opt")
    assert Mirror.of(repository).resolve("main").commit == commit


def test_hooks_and_hostile_contents_do_nothing(tmp_path: Path) -> None:
    """No hook runs, and a tree that would write into .git is refused by git's own check."""
    source = tmp_path / "source"
    makebox.make_repository(source)
    code = of(source)
    code.resolve("main")
    hooks = code.path / "hooks"
    assert not hooks.exists()
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-update"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\n")
        (hooks / name).chmod(0o755)
    makebox.commit(source, {"a": "two\n"})
    code.resolve("main")
    assert not (tmp_path / "owned").exists()
    blob = makebox.git(source, "hash-object", "-w", "a")
    run(["sh", "-c", f"cd {source}; printf '100644 blob {blob}\\t.git\\n' | git mktree >bad-tree"])
    bad = makebox.git(source, "commit-tree", "-m", "evil", (source / "bad-tree").read_text().strip())
    makebox.git(source, "update-ref", "refs/heads/evil", bad)
    with pytest.raises(GitError, match="hasDotgit"):
        code.resolve("evil")
    assert not code.holds(bad)


def test_a_mute_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and never answers ends in an error, with no git left behind."""
    monkeypatch.setattr(mirror, "ASK_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"git://127.0.0.1:{mute.getsockname()[1]}/x"
        started = time.monotonic()
        with refused(GitError, "timeout"):
            Mirror.of(Repository("code", url, False, "main", "/opt")).resolve("main")
    assert time.monotonic() - started < 60


def test_what_a_kill_left_is_repaired(tmp_path: Path, home: Path) -> None:
    """Stale lock files of git, half-made mirrors and half-written packs are no bar to the next run."""
    source = tmp_path / "source"
    makebox.make_repository(source)
    code = of(source)
    half = paths.mirrors_dir() / f".new-{code.path.name}-abc"
    half.mkdir(parents=True)
    code.path.mkdir()
    (code.path / "HEAD").touch()
    pin = code.resolve("main")
    assert not half.exists()
    makebox.commit(source, {"a": "two\n"})
    for name in ("packed-refs.lock", "config.lock", "refs/kimbox/incoming.lock", "objects/pack/tmp_pack_x"):
        (code.path / name).touch()
    assert code.resolve("main") != pin
    assert not list(code.path.rglob("*.lock"))
    assert [] == bare.remains()
    half.mkdir()
    assert ([half], True, []) == (bare.remains(), bare.remove(half), bare.remains())


def test_kill_in_the_middle_is_followed_by_a_plain_success(tmp_path: Path, home: Path) -> None:
    """kill -9 at several points of a resolve; each time the next one succeeds."""
    source = tmp_path / "source"
    commit = makebox.make_repository(source, {f"f{i}": "x" * i for i in range(50)})
    code = of(source)
    for delay in (0.0, 0.004, 0.012, 0.03):
        pid = os.fork()
        if pid == 0:
            try:
                code.resolve("main")
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert code.resolve("main").commit == commit
        command.git(["fsck", "--strict"], git_dir=code.path)


def test_two_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy mirror is waited for, then named."""
    source = tmp_path / "source"
    makebox.make_repository(source)
    code = of(source)
    code.resolve("main")
    monkeypatch.setattr(mirror, "BUSY_WAIT_S", 0.1)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(code.path.with_suffix(".lock")):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        with refused(StateError, "busy"):
            code.resolve("main")
    finally:
        release.set()
        thread.join()


def test_a_bundle_holds_one_commit_and_its_history(tmp_path: Path) -> None:
    """Nothing that is not part of the pinned commit travels."""
    source = tmp_path / "source"
    first = makebox.make_repository(source)
    second = makebox.commit(source, {"a": "two\n"})
    later = makebox.commit(source, {"a": "three\n"})
    code = of(source)
    code.resolve("main")
    code.ensure(second)
    write_bundle(code, second, tmp_path / "x.bundle")
    target = tmp_path / "target"
    target.mkdir()
    makebox.git(target, "init", "-q", "--bare")
    makebox.git(target, "fetch", "-q", str(tmp_path / "x.bundle"), "refs/kimbox/pin:refs/kimbox/x")
    assert makebox.git(target, "rev-list", "--all").split() == [second, first]
    assert not run(["git", "cat-file", "-e", later], cwd=target, check=False).ok
    with refused(GitError, "commit-not-found"):
        write_bundle(code, "0" * 40, tmp_path / "y.bundle")
    assert [p.name for p in tmp_path.glob("*.bundle")] == ["x.bundle"]


# --- folders


def make_folder(path: Path) -> Path:
    path.mkdir()
    (path / "setup").write_text("#!/bin/sh\r\n")
    (path / "setup").chmod(0o755)
    (path / "bin").mkdir()
    (path / "bin/tool").symlink_to("../setup")
    return path


def test_a_folder_is_pinned_by_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal content, equal commit: elsewhere, later, under another umask and another git configuration."""
    pin = of(make_folder(tmp_path / "a"), folder=True).resolve("HEAD")
    (tmp_path / "config").write_text(
        "[core]\nautocrlf = true\nexcludesFile = /tmp/excl\n[commit]\ngpgSign = true\n[user]\nname = x\n"
        '[filter "evil"]\nclean = touch /tmp/owned; cat\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    old = os.umask(0o077)
    try:
        other = make_folder(tmp_path / "b")
    finally:
        os.umask(old)
    os.utime(other / "setup", (0, 0))
    assert of(other, folder=True).resolve("main") == pin
    (other / "setup").chmod(0o644)
    assert of(other, folder=True).resolve("main").commit != pin.commit


def test_attributes_change_nothing_and_gitignore_keeps_out(tmp_path: Path) -> None:
    """Files are stored byte for byte; only the folder's own .gitignore leaves files out."""
    folder = make_folder(tmp_path / "a")
    (folder / ".gitattributes").write_text("* text eol=lf filter=evil\n*.txt export-ignore ident\n")
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "x.txt").write_bytes(b"$Id$\r\n\xff\n")
    (folder / "x.log").write_text("no")
    code = of(folder, folder=True)
    pin = code.resolve("HEAD")
    held = git(["ls-tree", "-r", "--name-only", pin.commit], git_dir=code.path).text.split()
    assert held == [".gitattributes", ".gitignore", "bin/tool", "setup", "x.txt"]
    assert git(["cat-file", "blob", f"{pin.commit}:x.txt"], git_dir=code.path).stdout == b"$Id$\r\n\xff\n"
    assert code.ensure(pin.commit) == pin
    with refused(GitError, "commit-not-found"):
        code.ensure("0" * 40)


def test_every_name_stands_for_its_own_file(tmp_path: Path) -> None:
    """Names that end in CR, hold quotes or are not UTF-8; the folder itself may have a line break in its name."""
    folder = tmp_path / "a\nb\r"
    folder.mkdir()
    names = [b"x", b"x\r", b'"x"', b"\\n", b"\x1b[m", b"\xff", b" x ", b"!id"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(b"content of " + name)
    code = of(folder, folder=True)
    pin = code.resolve("HEAD")
    held = git(["ls-tree", "-r", "-z", pin.commit], git_dir=code.path).stdout.split(b"\0")[:-1]
    blobs = {line.partition(b"\t")[2]: line.split()[2].decode() for line in held}
    assert sorted(names) == sorted(blobs)
    for name, blob in blobs.items():
        assert b"content of " + name == git(["cat-file", "blob", blob], git_dir=code.path).stdout


def test_what_must_not_be_in_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that lead out, repositories, devices, line breaks in names, nothing at all, too much."""

    def refuse(name: str, match: str) -> None:
        with pytest.raises(GitError, match=match):
            of(tmp_path / name, folder=True).resolve("HEAD")

    for index, target in enumerate(("/etc/passwd", "../outside", "bin/../../x", "../links3/../x")):
        folder = make_folder(tmp_path / f"links{index}")
        (folder / "link").symlink_to(target)
        refuse(folder.name, "leads out of the folder")
    via = make_folder(tmp_path / "via")
    (via / "deep/er").mkdir(parents=True)
    (via / "deep/er/f").touch()
    (via / "d").symlink_to("deep/er")
    (via / "link").symlink_to("d/../../../x")
    refuse("via", "leads out of the folder")
    loop = make_folder(tmp_path / "loop")
    (loop / "l").symlink_to("l")
    refuse("loop", "leads back to itself")
    (make_folder(tmp_path / "nested") / "sub/.GIT").mkdir(parents=True)
    refuse("nested", "contains a git repository")
    os.mkfifo(make_folder(tmp_path / "fifo") / "f")
    refuse("fifo", "neither a file")
    (make_folder(tmp_path / "newline") / "a\nb").touch()
    refuse("newline", "line break")
    (tmp_path / "none").mkdir()
    refuse("none", "holds no file")
    refuse("missing", "no such folder")
    make_folder(tmp_path / "large")
    monkeypatch.setattr("kimbox.lock.git.folder.MAX_BYTES", 5)
    refuse("large", "more than")


def test_ls_remote_is_parsed() -> None:
    """Peeled tags win over their tag objects; odd lines are passed over."""
    a, b = "a" * 40, "b" * 40
    offered = Offered.parse(f"{a}\tHEAD\n{a}\trefs/heads/main\n{b}\trefs/tags/v1\n{a}\trefs/tags/v1^{{}}\nnonsense\n")
    assert (offered.head, offered.refs) == (a, {"refs/heads/main": a, "refs/tags/v1": a})
    separated = Offered.parse(f"{a}\trefs/heads/x\u2028{b}\x85{b}\n")
    assert {f"refs/heads/x\u2028{b}\x85{b}": a} == separated.refs
