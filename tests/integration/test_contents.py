"""Hostile and unusual contents of repositories: Git LFS, sizes, symbolic links, names, hooks, refs. With real git."""

from __future__ import annotations

import resource
from pathlib import Path

import clirun
import fakeguest
import makebox
import pytest
from clirun import Kimbox
from fakeguest import FakeGuest, box_with, needs_namespace, provision
from refused import refused

from kimbox.lock.git import command, contents, mirror, submodules
from kimbox.lock.git.command import GitError
from kimbox.lock.git.mirror import Mirror
from kimbox.run import run
from kimbox.spec.model import Repository

kimbox, world, guest = clirun.kimbox, clirun.world, fakeguest.guest  # fixtures

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345678\n"
ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"


def of(source: Path) -> Mirror:
    return Mirror.of(Repository("code", f"file://{source}", False, "main", "/opt/code"))


def told(source: Path) -> list[str]:
    code = of(source)
    commit = code.resolve("main").commit
    return contents.check(code, commit, submodules.collect(code, commit))


# --- Git LFS


@pytest.mark.parametrize("folder", ["", "data/"])
def test_a_pointer_of_git_lfs_is_told(world: Path, folder: str) -> None:
    """With the name of a file, wherever the attribute stands."""
    makebox.make_repository(world / "code", {f"{folder}.gitattributes": ATTRIBUTES, "data/large.bin": POINTER})
    (words,) = told(world / "code")
    assert "repository code: `data/large.bin` is kept by Git LFS, which kimbox does not fetch" in words


def test_what_only_looks_like_git_lfs(world: Path) -> None:
    """The attribute without pointers, a pointer without the attribute, a text about both."""
    source = world / "code"
    makebox.make_repository(source, {".gitattributes": ATTRIBUTES, "a.bin": "real\n", "README": f"see\n{POINTER}"})
    assert [] == told(source)
    (source / ".gitattributes").unlink()
    makebox.commit(source, {"a.bin": POINTER})
    assert [] == told(source)


def test_the_verb_warns_of_git_lfs(kimbox: Kimbox, world: Path) -> None:
    """On stderr and in JSON, when the pin is made; also for a submodule."""
    makebox.make_repository(world / "code", {".gitattributes": ATTRIBUTES, "data/large.bin": POINTER})
    makebox.make_repository(world / "around")
    (world / "around/.gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = ../code\n')
    link = f"160000,{makebox.git(world / 'code', 'rev-parse', 'HEAD')},x"
    makebox.git(world / "around", "add", ".gitmodules")
    makebox.git(world / "around", "update-index", "--add", "--cacheinfo", link)
    makebox.git(world / "around", "commit", "-qm", "x")
    (world / "work/kimbox.yaml").write_text(
        "kimbox: 1\nname: tiny\nbase: [_defaults/debian.yaml]\nrepositories:\n"
        f'  code: {{url: "file://{world}/code"}}\n  around: {{url: "file://{world}/around"}}\n'
    )
    code, out, err = kimbox("lock", "--json")
    assert (0, 2) == (code, err.count("is kept by Git LFS"))
    assert ["around", "code"] == [text.split()[1].rstrip(":") for text in clirun.result(out, "lock")["warnings"]]
    assert "`x/data/large.bin`" in err
    code, _, err = kimbox("lock")
    assert (0, False) == (code, "LFS" in err)


# --- sizes


def test_a_commit_that_unpacks_to_too_much_is_refused(
    kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small pack, large files: with the name of the largest."""
    makebox.make_repository(world / "code", {"small": "x" * (2 << 20), "zeros": "\0" * (3 << 20)})
    monkeypatch.setattr(contents, "MAX_TREE_BYTES", 4 << 20)
    with pytest.raises(GitError, match=r"are 5 MiB, more than 4 MiB; the largest is `zeros` with 3 MiB"):
        told(world / "code")


def test_a_pack_that_is_too_large_is_cut_off(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it comes in: the disk is not filled, nothing is left, and the error says how much is allowed."""
    makebox.make_repository(world / "code")
    run(["dd", "if=/dev/urandom", f"of={world}/code/noise", "bs=1M", "count=3", "status=none"])
    commit = makebox.commit(world / "code", {"a": "two\n"})
    code = of(world / "code")
    monkeypatch.setattr(mirror, "MAX_PACK_BYTES", 1 << 20)
    for ask in (lambda: code.resolve("main"), lambda: code.ensure(commit)):
        with refused(GitError, "repository-too-large", repository="code"):
            ask()
    assert not code.holds(commit)
    monkeypatch.undo()
    monkeypatch.setenv("KIMBOX_HOME", str(world / "home"))
    assert commit == code.resolve("main").commit
    assert sum(f.stat().st_size for f in code.path.rglob("tmp_*")) == 0


def test_a_lower_limit_of_the_user_stands(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -f`: an ordinary user could not raise it, and the fetch would fail."""
    assert 8 << 30 == command._lowest_file_limit(8 << 30)
    for soft, hard in ((resource.RLIM_INFINITY, 1 << 30), (1 << 30, resource.RLIM_INFINITY), (1 << 30, 2 << 30)):
        with monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda _, found=(soft, hard): found)
            assert 1 << 30 == command._lowest_file_limit(8 << 30)


# --- names, links, hooks and refs


@pytest.mark.parametrize("name", [".git", ".GIT", ".gIt", "git~1", ".git .", ".g\u200cit", ".git\\x", "..", "."])
def test_names_that_would_write_into_git_folders(world: Path, name: str) -> None:
    """git's own check of what comes in refuses them, whatever the file system of the host."""
    source = world / "code"
    makebox.make_repository(source)
    blob = makebox.git(source, "hash-object", "-w", "a")
    entries = f"100644 blob {blob}\t{name}\0"
    (source / "entries").write_bytes(entries.encode())
    tree = run(["sh", "-c", "cd $1 && git mktree -z <entries", "sh", source]).stdout.strip()
    outer = run(
        ["sh", "-c", "cd $1 && printf '040000 tree %s\\tx\\n' $2 | git mktree", "sh", source, tree]
    ).stdout.strip()
    bad = makebox.git(source, "commit-tree", "-m", "evil", outer)
    makebox.git(source, "update-ref", "refs/heads/evil", bad)
    code = of(source)
    with pytest.raises(GitError, match=r"hasDot|fullPathname|cannot be read"):
        code.resolve("evil")
    assert not code.holds(bad)


def test_a_users_template_brings_no_hooks(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """init.templateDir of the user's configuration, and the variable: a mirror starts empty, and no hook runs."""
    hooks = world / "template/hooks"
    hooks.mkdir(parents=True)
    for name in ("reference-transaction", "post-update", "post-checkout"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {world}/owned\n")
        (hooks / name).chmod(0o755)
    (world / "config").write_text(f"[init]\n\ttemplateDir = {world}/template\n[core]\n\thooksPath = {hooks}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(world / "config"))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(world / "template"))
    makebox.make_repository(world / "code")
    (world / "owned").unlink(missing_ok=True)
    code = of(world / "code")
    code.resolve("main")
    assert not (code.path / "hooks").exists()
    assert not (world / "owned").exists()


def test_refs_like_options_are_only_names(world: Path) -> None:
    """A server that offers them changes nothing, and they cannot be asked for."""
    source = world / "code"
    commit = makebox.make_repository(source)
    for name in ("--upload-pack=touch owned", "-c", "--exec=x"):
        path = source / ".git/refs/heads" / name.replace(" ", "_")
        path.write_text(f"{commit}\n")
    code = of(source)
    assert commit == code.resolve("main").commit
    assert commit == code.ensure(commit).commit
    for name in ("--upload-pack=touch_owned", "-c", "--exec=x"):
        with refused(GitError, "bad-ref"):
            code.resolve(name)


@needs_namespace
def test_a_link_out_of_the_tree_leads_no_write_astray(guest: FakeGuest, world: Path) -> None:
    """One commit has a link to another folder, the next has files below that name: the other folder stays as it is."""
    makebox.make_repository(world / "setup", {"setup": "#!/bin/sh\n"})
    makebox.make_repository(world / "code")
    victim = guest.path("/home/vagrant/victim")
    victim.mkdir()
    (world / "code/out").symlink_to("../../victim")
    makebox.commit(world / "code", {"a": "link\n"})
    box = box_with(world)
    assert 0 == provision(guest, world, box)
    checkout = guest.path("/home/vagrant/src/code")
    assert (checkout / "out").is_symlink()
    (world / "code/out").unlink()
    makebox.commit(world / "code", {"out/file": "astray?\n"})
    assert 0 == provision(guest, world, box)
    assert "astray?\n" == (checkout / "out/file").read_text()
    assert [] == list(victim.iterdir())


# --- whose configuration applies


@needs_namespace
def test_the_users_configuration_stays_on_the_host(
    guest: FakeGuest, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """insteadOf and the credential helper of the host are neither sent to the guest nor used there."""
    makebox.make_repository(world / "setup", {"setup": "#!/bin/sh\n"})
    makebox.make_repository(world / "code", {"a": "one\n"})
    (world / "config").write_text(
        f'[url "file://{world}/"]\n\tinsteadOf = https://mirror.invalid/\n'
        '[credential]\n\thelper = "!echo password=hunter2hunter2"\n[http]\n\textraHeader = "X: hunter2hunter2"\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(world / "config"))
    box = box_with(world)
    assert 0 == provision(guest, world, box)
    grep = run(
        ["grep", "-rlE", "hunter2hunter2|mirror[.]invalid", guest.path("/persistent"), guest.path("/home")], check=False
    )
    assert (1, "") == (grep.code, grep.stdout)


@needs_namespace
def test_configurations_in_the_guest_do_not_apply(guest: FakeGuest, world: Path) -> None:
    """What an account there has in its .gitconfig runs nothing and changes no file of a checkout."""
    makebox.make_repository(world / "setup", {"setup": "#!/bin/sh\n"})
    makebox.make_repository(world / "code", {"a": "one\n", ".gitattributes": "* filter=evil\n"})
    for home in ("/home/vagrant", "/root"):
        guest.path(home).mkdir(parents=True, exist_ok=True)
        (guest.path(home) / ".gitconfig").write_text(
            "[core]\n\tfsmonitor = touch /tmp/owned\n\tautocrlf = true\n"
            '[filter "evil"]\n\tsmudge = "touch /tmp/owned; cat"\n\trequired = true\n'
        )
    assert 0 == provision(guest, world, box_with(world))
    assert not guest.path("/tmp/owned").exists()
    assert b"one\n" == guest.path("/home/vagrant/src/code/a").read_bytes()
