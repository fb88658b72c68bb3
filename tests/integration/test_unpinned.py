"""Repositories in place of those of the lock: working copies, other refs. With real git."""

from __future__ import annotations

import io
import os
from pathlib import Path

import attrs
import fakeguest
import feignedworld
import makebox
import makemachine
import pytest
import tinyimage
from fakedriver import ALL_FEATURES
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision
from feignedworld import World
from refused import refused

from kimbox.actions.provision import provision as provision_machine
from kimbox.cli import app
from kimbox.errors import GuestError, KimboxError, SpecError, UsageError
from kimbox.guest.delivery import Part
from kimbox.image import obtain
from kimbox.lock.git.command import GitError
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import read_lock
from kimbox.log import log
from kimbox.machine.state import State
from kimbox.project import pins
from kimbox.project.project import Project
from kimbox.project.unpinned import Replacement, unpinned
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.spec.model import Box

guest = fakeguest.guest  # a fixture
world = feignedworld.world  # a fixture


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A box with a lock beside its spec, of the repositories `setup` and `code`."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(obtain, "key_of", lambda *_: "e" * 64)
    monkeypatch.setattr(pins, "choose", tinyimage.choose)
    box = box_with(tmp_path)
    pins.lock_for(Project(box))
    return box


@pytest.fixture
def work(tmp_path: Path, box: Box) -> Path:
    """A clone of the setup repository, in which somebody works."""
    makebox.git(tmp_path, "clone", "-q", f"{tmp_path}/setup", "work")
    return tmp_path / "work"


def taken(box: Box, *words: str) -> dict[str, str]:
    """Path -> mode and content of what would run as `setup`."""
    lock, mirrors = unpinned(Project(box), [Replacement.parse(word) for word in words])
    mirror, commit = mirrors["setup"].path, lock.repositories["setup"].commit
    listed = makebox.git(mirror, "ls-tree", "-r", commit).splitlines()
    return {
        line.split("\t")[1]: line.split()[0] + " " + makebox.git(mirror, "cat-file", "-p", line.split()[2])
        for line in listed
    }


def test_a_dirty_work_tree_is_taken_as_it_lies_there(box: Box, work: Path) -> None:
    """Changed, staged, untracked and tracked though ignored is in; deleted, ignored and .git is not."""
    for name in ("gone", "staged", "kept.log"):
        (work / name).write_text(f"{name}\n")
    (work / ".gitignore").write_text("*.log\n")
    makebox.git(work, "add", "-f", ".")
    makebox.git(work, "commit", "-qm", "more")
    (work / "gone").unlink()
    (work / "setup").write_text("#!/bin/sh\necho dirty\n")
    (work / "staged").write_text("staged once\n")
    makebox.git(work, "add", "staged")
    (work / "staged").write_text("and again\n")
    (work / "new").mkdir()
    (work / "new/file").write_text("untracked\n")
    (work / "left.log").write_text("ignored\n")
    before = makebox.git(work, "status", "--porcelain")
    assert taken(box, f"setup={work}") == {
        ".gitignore": "100644 *.log",
        "kept.log": "100644 kept.log",
        "new/file": "100644 untracked",
        "setup": "100755 #!/bin/sh\necho dirty",
        "staged": "100644 and again",
    }
    assert makebox.git(work, "status", "--porcelain") == before


def test_the_same_work_tree_is_the_same_commit(box: Box, work: Path) -> None:
    """Its content alone decides, not its history; a change of it is another manifest."""

    def digest() -> tuple[str, str]:
        lock, _ = unpinned(Project(box), [Replacement("setup", work, None)])
        return lock.repositories["setup"].commit, manifest_digest(render_manifest(box, lock))

    first = digest()
    makebox.git(work, "commit", "-q", "--allow-empty", "-m", "nothing")
    assert digest() == first
    (work / "setup").write_text("#!/bin/sh\necho two\n")
    assert digest()[0] != first[0]
    assert digest()[1] != first[1]


def test_submodules_are_said(box: Box, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that is checked out the files are taken, dirty ones too; one that is not is named."""
    makebox.make_repository(tmp_path / "lib", {"lib.sh": "one\n"})
    allow = ("-c", "protocol.file.allow=always")
    for name in ("deep/lib", "bare"):
        makebox.git(work, *allow, "submodule", "--quiet", "add", str(tmp_path / "lib"), name)
    (work / "deep/lib/lib.sh").write_text("dirty\n")
    makebox.git(work, "submodule", "--quiet", "deinit", "-f", "bare")
    stream = io.StringIO()
    monkeypatch.setattr(log, "stream", stream)
    got = taken(box, f"setup={work}")
    assert got["deep/lib/lib.sh"] == "100644 dirty"
    assert not [path for path in got if path.startswith("bare") or ".git/" in path]
    assert "current files of the submodule deep/lib are used" in stream.getvalue()
    assert "the submodule bare is not checked out" in stream.getvalue()


def test_nothing_outside_of_a_work_tree_is_read(box: Box, work: Path, tmp_path: Path) -> None:
    """Neither through a link in place of a folder, nor through a link that leads out; a FIFO does not hang it."""
    (work / "folder").mkdir()
    (work / "folder/secret").write_text("public\n")
    makebox.git(work, "add", "-A")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text("secret\n")
    (work / "folder/secret").unlink()
    (work / "folder").rmdir()
    (work / "folder").symlink_to(tmp_path / "elsewhere")
    with refused(GitError, "folder-content"):
        taken(box, f"setup={work}")
    (work / "folder").unlink()
    (work / "inside").mkdir()
    (work / "inside/secret").write_text("mine\n")
    (work / "folder").symlink_to("inside")
    assert "folder/secret" not in taken(box, f"setup={work}")
    (work / ".git/hooks/post-index-change").write_text(f"#!/bin/sh\ntouch {tmp_path}/hook\n")
    (work / ".git/hooks/post-index-change").chmod(0o755)
    makebox.git(work, "config", "core.fsmonitor", f"touch {tmp_path}/hook")
    taken(box, f"setup={work}")
    assert not (tmp_path / "hook").exists()
    os.mkfifo(work / "setup2")
    makebox.git(work, "update-index", "--add", "--cacheinfo", f"100644,{'0' * 39}1,setup2")
    with refused(GitError, "folder-content"):
        taken(box, f"setup={work}")


def test_a_plain_folder_and_another_ref(box: Box, tmp_path: Path) -> None:
    """A folder without .git; a branch, a tag and a commit of the URL."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/setup").write_text("plain\n")
    with refused(SpecError, "bad-script"):
        taken(box, f"setup={tmp_path}/plain")
    (tmp_path / "plain/setup").chmod(0o755)
    assert taken(box, f"setup={tmp_path}/plain") == {"setup": "100755 plain"}
    makebox.git(tmp_path / "setup", "checkout", "-q", "-b", "try/this")
    commit = makebox.commit(tmp_path / "setup", {"setup": "#!/bin/sh\necho tried\n"})
    for ref in ("try/this", commit):
        assert "echo tried" in taken(box, f"setup@{ref}")["setup"]
    with refused(KimboxError, "ref-not-found", ref="try/that"):
        taken(box, "setup@try/that")


def test_the_lock_is_not_touched_and_what_is_unpinned_is_named(box: Box, work: Path, tmp_path: Path) -> None:
    """The other pins are those of the file; its digest stays that of the file; URLs tell no folder of this machine."""
    path = tmp_path / "kimbox.lock"
    before = path.stat()
    makebox.commit(tmp_path / "code", {"a": "moved on\n"})
    lock, mirrors = unpinned(Project(box), [Replacement("setup", work, None)])
    frozen = read_lock(path)
    assert (lock.unpinned, lock.digest) == (("setup",), frozen.digest)
    assert lock.repositories["code"] == frozen.repositories["code"]
    assert lock.repositories["setup"].url == "./work"
    assert mirrors["setup"].path != Mirror.of(box.repositories[0]).path
    assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)
    assert b"KIMBOX_UNPINNED='setup'\n" in render_manifest(box, lock)["manifest.env"][0]


def test_what_is_not_there_is_named(box: Box, tmp_path: Path) -> None:
    """A repository, a folder or a lock; a word of another form."""
    with refused(UsageError, "repository-not-found", repository="setpu") as unknown:
        unpinned(Project(box), [Replacement("setpu", tmp_path, None)])
    assert unknown.value.hint == "did you mean setup?"
    with refused(GitError, "file-not-found"):
        unpinned(Project(box), [Replacement.parse("setup=/nowhere/at/all")])
    for word in ("setup", "setup=", "=x", "@main", ""):
        with refused(UsageError, "bad-value", option="--repo"):
            Replacement.parse(word)
    for ref in ("--upload-pack=x", "a..b", "x:y"):
        with refused(GitError, "bad-ref"):
            unpinned(Project(box), [Replacement.parse(f"setup@{ref}")])
    folder = attrs.evolve(box.repositories[0], url=str(tmp_path / "plain"), is_folder=True)
    with refused(UsageError, "ref-not-found", repository="setup", ref="main"):
        Replacement("setup", None, "main").pin(box, folder)
    changed = attrs.evolve(box, repositories=(box.repositories[0], attrs.evolve(box.repositories[1], ref="v2")))
    with refused(SpecError, "lock-disagrees") as disagreeing:
        unpinned(Project(changed), [Replacement("setup", None, "main")])
    assert "asks for v2" in disagreeing.value.message
    (tmp_path / "kimbox.lock").unlink()
    with refused(SpecError, "lock-not-found", path=str(tmp_path / "kimbox.lock")):
        unpinned(Project(box), [Replacement("setup", None, "main")])


def test_the_command_line(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """Words of a wrong form and parts that exclude each other are errors of usage."""
    assert app.run(["provision", "--repo", "setup"]) == 2
    assert app.run(["provision", "--only", "a", "--from", "b"]) == 2
    said = capsys.readouterr().err
    assert "neither NAME=FOLDER nor NAME@REF" in said
    assert "exclude each other" in said


# --- the life of a machine


def test_provision_brings_it_and_up_takes_it_back(world: World, work: Path, box: Box) -> None:
    """Another manifest is delivered; the next `up` delivers the locked one again."""
    world.box, world.lock = box, read_lock(box.source.with_suffix(".lock"))
    world.driver.features = attrs.evolve(ALL_FEATURES, delivery_disk=False)  # the mirrors of the plan are not there
    world.after = [makemachine.event(kind, manifest=world.digest) for kind in ("provisioning", "ready")]
    feignedworld.up(world)
    locked = world.digest
    lock, _ = unpinned(Project(box), [Replacement("setup", work, None)])
    assert lock.repositories["setup"].commit != world.lock.repositories["setup"].commit
    world.lock = lock
    world.after = [makemachine.event(kind, manifest=world.digest) for kind in ("provisioning", "ready")]
    assert world.digest != locked
    world.did.clear()
    provision_machine(Project(box), replacements=(Replacement("setup", work, None),))
    assert world.did == ["deliver"]
    world.lock = read_lock(box.source.with_suffix(".lock"))
    world.after = [makemachine.event(kind, manifest=world.digest) for kind in ("provisioning", "ready")]
    assert State.READY is feignedworld.up(world)
    assert world.did == ["deliver", "deliver"]


def test_after_a_part_up_runs_the_whole(world: World, box: Box) -> None:
    """A box that is ready with a part of its manifest is brought all of it; a step that is not there is named."""
    world.box, world.lock = box, read_lock(box.source.with_suffix(".lock"))
    world.driver.features = attrs.evolve(ALL_FEATURES, delivery_disk=False)  # the mirrors of the plan are not there
    world.after = [makemachine.event(kind, manifest=world.digest) for kind in ("provisioning", "ready")]
    feignedworld.up(world)
    whole = world.after
    world.after = [whole[0], makemachine.event("ready", manifest=world.digest, part="only setup")]
    provision_machine(Project(box), part=Part("only", "setup"))
    world.after = whole
    world.did.clear()
    feignedworld.up(world)
    feignedworld.up(world)
    assert world.did == ["deliver"]
    with refused(UsageError, "step-not-found", step="stup") as unknown:
        provision_machine(Project(box), part=Part("from", "stup"))
    assert unknown.value.hint == "did you mean setup?"
    world.after = [
        whole[0],
        makemachine.event("failed", manifest=world.digest, kind="setup", name="setup", exit=3, reason="no"),
    ]
    with pytest.raises(GuestError, match="setup"):
        provision_machine(Project(box), part=Part("only", "setup"))


# --- the guest


@needs_namespace
def test_a_bad_working_copy_does_not_brick_the_box(guest: FakeGuest, tmp_path: Path, box: Box, work: Path) -> None:
    """It fails, and the next boot has the last good manifest; a good one is unpinned until a pinned one comes."""
    assert provision(guest, tmp_path, box) == 0
    good = delivery(tmp_path, box)[0]
    (work / "setup").write_text("#!/bin/sh\nexit 3\n")
    bad = deliver(guest, tmp_path, box, work)
    assert guest.run("/usr/lib/kimbox/provisiond").code == 1
    guest.new_root()
    guest.events()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    told = guest.events(box=True)
    assert told[-1] == {"event": "ready", "manifest": good, "wanted": bad}
    assert told[-2]["unpinned"] == ""
    (work / "setup").write_text("#!/bin/sh\necho of the working copy\n")
    deliver(guest, tmp_path, box, work)
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert "of the working copy" in guest.log()
    assert guest.events(box=True)[-2]["unpinned"] == "setup"
    guest.new_root()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert guest.events(box=True)[-2]["unpinned"] == "setup"
    assert provision(guest, tmp_path, box) == 0
    assert guest.events(box=True)[-2]["unpinned"] == ""


def deliver(guest: FakeGuest, folder: Path, box: Box, work: Path) -> str:
    """Brings a box with a working copy in place of its setup repository; returns the digest of the manifest."""
    lock, mirrors = unpinned(Project(box), [Replacement("setup", work, None)])
    digest, tar = delivery(folder, box, lock, mirrors)
    assert guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).code == 0
    return digest
