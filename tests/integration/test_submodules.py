"""Submodules: found, locked and mirrored on the host, checked out in the guest; and hostile ones refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import attrs
import clirun
import fakeguest
import makebox
import pytest
from clirun import Kimbox
from fakeguest import FakeGuest, box_with, needs_namespace, provision, steps_of
from refused import refused

from kimbox import paths
from kimbox.errors import KimboxError, SpecError
from kimbox.guest.delivery import Parcel, lacked, parcels_of
from kimbox.guest.ssh import Guest
from kimbox.lock.diff import as_text, diff
from kimbox.lock.git import submodules
from kimbox.lock.git.command import GitError
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import PinnedSubmodule, make_lock, read_lock
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.render.manifest import render_manifest
from kimbox.run import Completed
from kimbox.spec.load import load_box
from kimbox.spec.model import Repository
from kimbox.spec.nodes import Fault

kimbox, world, guest = clirun.kimbox, clirun.world, fakeguest.guest  # fixtures


def add(repository: Path, url: str, path: str, commit: str) -> str:
    """A submodule, as `git submodule add` would leave it, whatever its path and URL; returns the new commit."""
    modules = repository / ".gitmodules"
    text = modules.read_text() if modules.exists() else ""
    modules.write_text(text + f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n')
    makebox.git(repository, "add", ".gitmodules")
    makebox.git(repository, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    makebox.git(repository, "commit", "-qm", f"submodule {path}")
    return makebox.git(repository, "rev-parse", "HEAD")


def move(repository: Path, path: str, commit: str) -> str:
    """Another commit of a submodule."""
    makebox.git(repository, "update-index", "--cacheinfo", f"160000,{commit},{path}")
    makebox.git(repository, "commit", "-qm", f"move {path}")
    return makebox.git(repository, "rev-parse", "HEAD")


def of(source: Path) -> Mirror:
    return Mirror.of(Repository("code", f"file://{source}", False, "main", "/opt/code"))


@pytest.fixture
def nested(world: Path) -> dict[str, str]:
    """code has lib/x (relative url), and that has deep/y (absolute); the commits by name."""
    commits = {"y": makebox.make_repository(world / "y", {"y": "deep\n"})}
    makebox.make_repository(world / "x", {"x": "inner\n"})
    commits["x"] = add(world / "x", f"{world}/y", "deep/y", commits["y"])
    makebox.make_repository(world / "code", {"a": "one\n", "lib/readme": "of libraries\n"})
    commits["code"] = add(world / "code", "../x", "lib/x", commits["x"])
    return commits


def test_submodules_are_found_with_those_inside_them(world: Path, nested: dict[str, str]) -> None:
    """By path, with absolute URLs, and every commit is in a mirror: later no server is needed."""
    code = of(world / "code")
    pin = code.resolve("main")
    found = submodules.collect(code, pin.commit)
    assert {
        "lib/x": (f"file://{world}/x", nested["x"]), "lib/x/deep/y": (f"file://{world}/y", nested["y"])
    } == {path: (inner.url, inner.commit) for path, inner in found.items()}  # fmt: skip
    for name in nested:
        (world / name).rename(world / f"{name}-gone")
    assert list(found) == list(submodules.collect(attrs.evolve(code, offline=True), pin.commit))


def write_spec(world: Path) -> Path:
    spec = world / "work/kimbox.yaml"
    spec.write_text(
        "kimbox: 1\nname: tiny\nbase: [_defaults/debian.yaml]\n"
        f'repositories: {{code: {{url: "file://{world}/code", ref: main}}}}\n'
    )
    return spec


def test_they_are_in_the_lock(kimbox: Kimbox, world: Path, nested: dict[str, str]) -> None:
    """Path, url and commit; they are checked, moved with their repository, and shown by diff."""
    spec = write_spec(world)
    assert 0 == kimbox("lock")[0]
    path = world / "work/kimbox.lock"
    lock = read_lock(path)
    assert {
        "lib/x": PinnedSubmodule(f"file://{world}/x", nested["x"]),
        "lib/x/deep/y": PinnedSubmodule(f"file://{world}/y", nested["y"]),
    } == lock.repositories["code"].submodules
    assert f"    submodules:\n      lib/x:\n        url: file://{world}/x\n" in path.read_text()
    assert 0 == kimbox("lock", "--check")[0]
    mirrors = pins.lock_for(Project(load_box(spec), frozen=True)).mirrors
    assert ["code", "code:lib/x", "code:lib/x/deep/y"] == sorted(mirrors)
    newer = makebox.commit(world / "x", {"x": "newer\n"})
    move(world / "code", "lib/x", newer)
    code, out, _ = kimbox("lock", "--update", "code")
    assert (0, True) == (code, f"code: submodule lib/x: {nested['x'][:12]} -> {newer[:12]}\n" in out)
    assert newer == read_lock(path).repositories["code"].submodules["lib/x"].commit
    fewer = attrs.evolve(lock, repositories={"code": attrs.evolve(lock.repositories["code"], submodules={})})
    assert [
        f"code: submodule lib/x: none -> {nested['x'][:12]} (from file://{world}/x)",
        f"code: submodule lib/x/deep/y: none -> {nested['y'][:12]} (from file://{world}/y)",
    ] == as_text(diff(fewer, lock), {})


def test_a_lock_that_tells_other_submodules_is_refused(kimbox: Kimbox, world: Path, nested: dict[str, str]) -> None:
    """Edited by hand: by --check at its line, and by up. `lock` corrects it without another commit."""
    spec = write_spec(world)
    assert 0 == kimbox("lock")[0]
    whole = (path := world / "work/kimbox.lock").read_text()
    makebox.commit(world / "code", {"a": "newer\n"})
    path.write_text(whole.replace(nested["y"], "ab" * 20))
    code, _, err = kimbox("lock", "--check")
    line = path.read_text().splitlines().index("    submodules:") + 1
    assert (3, True) == (code, f"kimbox.lock:{line}:5: repository code: the submodules are not those of" in err)
    with refused(SpecError, "lock-disagrees", path=str(path), repository="code") as disagreeing:
        pins.lock_for(Project(load_box(spec)))
    assert "`kimbox lock`" in disagreeing.value.message
    assert (0, whole) == (kimbox("lock")[0], path.read_text())
    path.write_text(whole.replace("lib/x/deep/y", "../../up"))
    assert 3 == kimbox("lock", "--check")[0]


def test_a_check_on_a_machine_that_lacks_them(kimbox: Kimbox, world: Path, nested: dict[str, str]) -> None:
    """What is not here is a note; offline it is an error that names commit and submodule."""
    spec = write_spec(world)
    assert 0 == kimbox("lock")[0]
    next(paths.mirrors_dir().glob("y-*.git")).rename(world / "away")
    code, out, _ = kimbox("lock", "--check")
    assert (0, True) == (code, f"lacks commit {nested['y']}" in out and "note: the submodule `lib/x/deep/y`" in out)
    with refused(GitError, "offline", path="lib/x/deep/y", commit=nested["y"]):
        pins.lock_for(Project(load_box(spec), offline=True))


def test_without_gitmodules_there_are_none(world: Path) -> None:
    """A link without a source is an empty folder to git as well; a .gitmodules without links is text."""
    source = world / "code"
    makebox.make_repository(source, {".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = https://x.invalid/x\n'})
    code = of(source)
    assert {} == submodules.collect(code, code.resolve("main").commit)
    makebox.git(source, "rm", "-q", ".gitmodules")
    makebox.git(source, "update-index", "--add", "--cacheinfo", f"160000,{'a' * 40},x")
    makebox.git(source, "commit", "-qm", "link")
    assert {} == submodules.collect(code, code.resolve("main").commit)


# --- hostile ones


@pytest.mark.parametrize(
    "path",
    ["../up", "a/../../b", "/etc", "a//b", "a/", ".", "-x", "a/-x", ".git", ".GIT/x", "a/.git/hooks", "git~1", ".git.",
     ".git ", ".git::$INDEX_ALLOCATION", ".g\u200cit", "a\nb", "a\tb", "a\\b", "\x1b[2J", 'a"b'],
)  # fmt: skip
def test_paths_that_lead_elsewhere(path: str) -> None:
    """Out of the checkout, into a .git by any of its names, or into an option."""
    with pytest.raises(Fault):
        submodules.check_path(path)


@pytest.mark.parametrize("path", ["lib/x", "a b/c", "x.git", ".github/y", "é", "git"])
def test_ordinary_paths_pass(path: str) -> None:
    """What people have."""
    submodules.check_path(path)


FAR, NEAR = "https://h.org/a/b.git", "file:///srv/a/b"


@pytest.mark.parametrize(
    ("url", "parent", "expected"),
    [
        ("../c.git", FAR, "https://h.org/a/c.git"),
        ("../../c", FAR, "https://h.org/c"),
        ("./c", FAR, "https://h.org/a/b.git/c"),
        ("../../../c", FAR, "leads out"),
        ("../../../../c", FAR, "leads out"),
        ("../c", "git@h.org:a/b", "git@h.org:a/c"),
        ("../c", "git@h.org:b", "git@h.org:c"),
        ("../../c", "git@h.org:b", "leads out"),
        ("../c", "ssh://git@h.org:22/a/b/", "ssh://git@h.org:22/a/c"),
        ("../c", NEAR, "file:///srv/a/c"),
        ("/srv/c", NEAR, "file:///srv/c"),
        ("git@h.org:c", FAR, "git@h.org:c"),
        ("https://x.org/c", FAR, "https://x.org/c"),
        ("/srv/c", FAR, "is not a URL"),
        ("c", FAR, "is not a URL"),
        ("file:///home/me/secret", FAR, "is a folder of this machine"),
        ("file:///home/me/secret", "git@h.org:a/b", "is a folder of this machine"),
        ("ext::sh -c x", FAR, "runs commands"),
        ("ext::sh -c x", NEAR, "runs commands"),
        ("--upload-pack=x", FAR, "starts with a hyphen"),
        ("ssh://-oProxyCommand=x/y", FAR, "does not name a host"),
        ("ftp://h/x", FAR, "is not supported"),
        ("https://me:hunter2@h.org/x", FAR, "user name or password"),
        ("../c d", FAR, "cannot contain spaces"),
        ("", FAR, "cannot be empty"),
    ],
)
def test_urls_are_those_that_a_spec_may_name(url: str, parent: str, expected: str) -> None:
    """Relative ones never leave the parent's host, and nothing from elsewhere reaches a folder of this machine."""
    if ":" in expected:
        assert expected == submodules.absolute_url(url, parent)
        return
    with pytest.raises(Fault) as fault:
        submodules.absolute_url(url, parent)
    assert expected in fault.value.message
    assert "hunter2" not in fault.value.message


def test_a_hostile_repository_is_named(world: Path) -> None:
    """Its submodule's path and what is wrong with it; and nothing was run or fetched."""
    makebox.make_repository(world / "code")
    commit = add(world / "code", f"ext::touch% {world}/owned", "lib/x", "a" * 40)
    code = of(world / "code")
    with pytest.raises(GitError, match=r"the submodule `lib/x` of the repository code: .* runs commands|gitmodulesUrl"):
        submodules.collect(code, code.resolve("main").commit)
    assert not (world / "owned").exists()
    assert commit


def test_a_gitmodules_that_is_none(world: Path) -> None:
    """A symbolic link, too large, damaged, or silent about a link."""
    source = world / "code"
    makebox.make_repository(source)
    code = of(source)
    (source / ".gitmodules").write_text("#" * (submodules.MAX_GITMODULES_BYTES + 1))
    makebox.commit(source, {"a": "two\n"})
    with refused(GitError, "bad-submodule"):
        submodules.collect(code, code.resolve("main").commit)
    makebox.commit(source, {".gitmodules": '[submodule "y"]\n\tpath = y\n'})
    makebox.git(source, "update-index", "--add", "--cacheinfo", f"160000,{'a' * 40},x")
    makebox.git(source, "commit", "-qm", "link")
    with refused(GitError, "bad-submodule"):
        submodules.collect(code, code.resolve("main").commit)
    (source / ".gitmodules").unlink()
    (source / ".gitmodules").symlink_to("/etc/passwd")
    makebox.git(source, "add", ".gitmodules")
    makebox.git(source, "commit", "-qm", "symlink")
    with pytest.raises(GitError, match=r"gitmodulesSymlink|not a regular file"):
        submodules.collect(code, code.resolve("main").commit)


def test_a_gitmodules_includes_no_file_of_this_machine(world: Path) -> None:
    """Its [include] counts for nothing, and what such a file holds is not repeated."""
    (world / "mine").write_text(f'[submodule "x"]\n\tpath = x\n\turl = file://{world}/secret\n')
    (world / "broken").write_text("hunter2 is no configuration\n")
    source = world / "code"
    makebox.make_repository(source)
    code = of(source)
    makebox.git(source, "update-index", "--add", "--cacheinfo", f"160000,{'a' * 40},x")
    for name in ("mine", "broken"):
        (source / ".gitmodules").write_text(f"[include]\n\tpath = {world}/{name}\n")
        makebox.git(source, "add", ".gitmodules")
        makebox.git(source, "commit", "-qm", name)
        with refused(GitError, "bad-submodule") as caught:
            submodules.collect(code, code.resolve("main").commit)
        assert "hunter2" not in str(caught.value)


def test_too_many_and_too_deep(world: Path, monkeypatch: pytest.MonkeyPatch, nested: dict[str, str]) -> None:
    """Bounds hold."""
    code = of(world / "code")
    commit = code.resolve("main").commit
    monkeypatch.setattr(submodules, "MAX_DEPTH", 1)
    with refused(GitError, "bad-submodule", repository="code"):
        submodules.collect(code, commit)
    monkeypatch.setattr(submodules, "MAX_DEPTH", 5)
    monkeypatch.setattr(submodules, "MAX_SUBMODULES", 1)
    with refused(GitError, "bad-submodule", repository="code"):
        submodules.collect(code, commit)


def test_a_submodule_that_is_gone_is_named(world: Path, nested: dict[str, str]) -> None:
    """With its path and commit, and who names it."""
    code = of(world / "code")
    commit = code.resolve("main").commit
    makebox.git(world / "x", "update-ref", "-d", "refs/heads/main")
    makebox.git(world / "x", "reflog", "expire", "--expire=now", "--all")
    makebox.git(world / "x", "prune", "--expire=now")
    with pytest.raises(
        GitError, match=f"the submodule `lib/x` of the repository code: .* no longer has .*{nested['x']}"
    ) as e:
        submodules.collect(code, commit)
    assert commit[:12] in str(e.value.hint)


# --- in the guest


@needs_namespace
def test_the_guest_checks_them_out_without_a_network(guest: FakeGuest, world: Path, nested: dict[str, str]) -> None:
    """At their paths, at their commits; again after a new root, moved, and gone when they are gone."""
    makebox.make_repository(world / "setup", {"setup": "#!/bin/sh\n"})
    box = box_with(world)
    manifest = render_manifest(box, make_lock(box))
    assert b"KIMBOX_MANIFEST_FORMAT=2\n" in manifest["manifest.env"][0].replace(b"'", b"")
    assert f"code\t{nested['x']}\tlib/x\ncode\t{nested['y']}\tlib/x/deep/y\n".encode() == manifest["submodules"][0]
    assert 0 == provision(guest, world, box)
    checkout = guest.path("/home/vagrant/src/code")
    for _ in range(2):
        assert ("inner\n", "deep\n") == ((checkout / "lib/x/x").read_text(), (checkout / "lib/x/deep/y/y").read_text())
        assert nested["y"] == (checkout / "lib/x/deep/y/.git/HEAD").read_text().strip()
        guest.new_root()
        guest.run("rm", "-rf", "/home/vagrant/src")
        assert 0 == guest.run("/usr/lib/kimbox/provisiond").code
    newer = makebox.commit(world / "x", {"x": "newer\n"})
    move(world / "code", "lib/x", newer)
    (checkout / "lib/x/x").write_text("changed by hand\n")
    assert 0 == provision(guest, world, box)
    assert "newer\n" == (checkout / "lib/x/x").read_text()
    guest.events()
    assert 0 == guest.run("/persistent/runsetup").code
    assert ("repository", "code", "skipped") in steps_of(guest.events())
    makebox.git(world / "code", "rm", "-q", "--cached", "lib/x", ".gitmodules")
    makebox.commit(world / "code", {"lib/x/plain": "a plain file now\n"})
    (world / "code/.gitmodules").unlink()
    makebox.commit(world / "code", {"a": "last\n"})
    assert 0 == provision(guest, world, box)
    assert ["plain"] == [entry.name for entry in (checkout / "lib/x").iterdir()]
    assert "submodules" not in render_manifest(box, make_lock(box))


@needs_namespace
def test_a_link_in_the_way_is_not_followed(guest: FakeGuest, world: Path, nested: dict[str, str]) -> None:
    """Somebody in the guest put a symbolic link where a submodule is to be: what it leads to stays as it is."""
    makebox.make_repository(world / "setup", {"setup": "#!/bin/sh\n"})
    box = box_with(world)
    assert 0 == provision(guest, world, box)
    victim = guest.path("/home/vagrant/victim")
    victim.mkdir()
    checkout = guest.path("/home/vagrant/src/code")
    guest.run("rm", "-rf", "/home/vagrant/src/code/lib")
    (checkout / "lib").symlink_to("../../victim")
    guest.run("rm", "-rf", "/var/lib/kimbox/done")
    assert 0 == guest.run("/usr/lib/kimbox/provisiond").code
    assert [] == list(victim.iterdir())
    assert "inner\n" == (checkout / "lib/x/x").read_text()
    assert not (checkout / "lib").is_symlink()


def test_only_what_the_guest_lacks_is_sent() -> None:
    """It answers once for each commit that it has: a repository is whole only with all of its submodules."""
    parcels = [Parcel("code", c * 40, "", "") for c in "abc"] + [Parcel("setup", "d" * 40, "", "")]

    class Answering:
        def __init__(self, words: str, code: int = 0) -> None:
            self.answer = Completed(code, words, "")

        def run(self, command: str, **_: object) -> Completed:
            assert command.endswith(f"code {'a' * 40} code {'b' * 40} code {'c' * 40} setup {'d' * 40}")
            return self.answer

    def names(words: str, code: int = 0) -> list[str]:
        return [parcel.name for parcel in lacked(cast(Guest, Answering(words, code)), "", parcels)]

    assert [] == names("code\ncode\ncode\nsetup\n")
    assert ["code", "code", "code"] == names("code\ncode\nsetup\n")
    assert ["setup"] == names("code\ncode\ncode\n")
    assert ["code", "code", "code", "setup"] == names("code\ncode\ncode\nsetup\n", 1)


def test_words_of_a_lock_are_words_for_the_shell() -> None:
    """Whatever a repository or commit is called, it is one argument of the command in the guest."""
    commands: list[str] = []

    class Noting:
        def run(self, command: str, **_: object) -> Completed:
            commands.append(command)
            return Completed(0, "", "")

    lacked(cast(Guest, Noting()), "", [Parcel("code", "a\nreboot", "", ""), Parcel("$(id)", "b;c", "", "")])
    assert ["--have", "code", "a\nreboot", "$(id)", "b;c"] == shlex.split(commands[0])[1:]


def test_what_is_sent(world: Path, nested: dict[str, str]) -> None:
    """Each commit once, for the mirror of the repository around it; no path that leads out gets into a manifest."""
    makebox.make_repository(world / "setup", {"setup": "#!/bin/sh\n"})
    box = box_with(world)
    lock = make_lock(box)
    assert [
        ("setup", "setup"), ("code", "code:lib/x"), ("code", "code:lib/x/deep/y"), ("code", "code")
    ] == [(parcel.name, parcel.mirror) for parcel in parcels_of(box, lock)]  # fmt: skip
    bad = attrs.evolve(lock.repositories["code"], submodules={"../x": PinnedSubmodule("u", "a" * 40)})
    with pytest.raises(KimboxError) as outside:
        render_manifest(box, attrs.evolve(lock, repositories=dict(lock.repositories) | {"code": bad}))
    assert ("bad-path", {"repository": "code", "path": "../x"}) == (outside.value.code, outside.value.fields)
