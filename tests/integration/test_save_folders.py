"""Saves of boxes with repositories that are folders of the saving host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import makesaved
import pytest
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world
from refused import refused

from kimbox.actions.saves import folders
from kimbox.actions.saves.restore import SPEC_FOLDER
from kimbox.errors import KimboxError
from kimbox.image.saves import packs
from kimbox.image.saves.manifest import Folder
from kimbox.lock.git.bundle import write_bundle
from kimbox.lock.git.mirror import Mirror, Pin
from kimbox.lock.lockfile import Lock, PinnedRepository, read_lock, write_lock
from kimbox.machine.folder import Machine
from kimbox.run import run
from kimbox.spec.load import load_box
from kimbox.spec.model import Repository
from kimbox.transfer.stores.folder import FolderStore


def mirror_of(folder: Path) -> Mirror:
    """Returns the mirror of a folder."""
    return Mirror.of(Repository("setup", str(folder), is_folder=True, ref="", path=""))


def fill(folder: Path) -> Path:
    """Writes a folder with content that git would convert in a checkout, were it asked to."""
    folder.mkdir()
    (folder / ".gitattributes").write_text("* text eol=crlf ident\n")
    (folder / "setup").write_text("#!/bin/sh\n# $Id$\n")
    (folder / "setup").chmod(0o755)
    (folder / "below").mkdir()
    (folder / "below/link").symlink_to("../setup")
    return folder


@pytest.fixture
def machine(world: Path) -> Machine:
    """A halted box of a spec with a folder beside it."""
    machine = makesaved.make_saved(world)
    source = world / "project"
    source.mkdir()
    pin = mirror_of(fill(source / "setup")).resolve("HEAD")
    _write(machine, "./setup", pin)
    machine.write_record(attrs.evolve(machine.record(), source=str(source / "kimbox.yaml")))
    return machine


def _write(machine: Machine, url: str, pin: Pin) -> None:
    """Writes spec and lock of the machine, with this repository."""
    spec = makesaved.SPEC | {"repositories": {"setup": {"url": url}}}
    (machine.locks / f"{makesaved.MANIFEST}.yaml").write_text(json.dumps(spec))
    pinned = PinnedRepository(url, "HEAD", pin.commit, pin.tree)
    write_lock(machine.locks / f"{makesaved.MANIFEST}.lock", Lock("d" * 64, makesaved.IMAGE, {"setup": pinned}))


def save(kimbox: Kimbox, store: Path) -> dict[str, Any]:
    """Saves the box. Returns the result."""
    code, out, err = kimbox("--json", "save", "tiny", str(store))
    assert 0 == code, err + out
    return dict(result(out, "save"))


def test_the_new_box_has_the_folder(kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """On a host without it. Its commit is that of the lock, as it depends on the content only."""
    store = world / "store"
    save(kimbox, store)
    shutil.rmtree(world / "project")
    code, out, err = kimbox("--json", "create", "other", "--from", str(store))
    assert 0 == code, err + out
    place = Machine("other").folder / SPEC_FOLDER
    box, lock = load_box(place / "kimbox.yaml"), read_lock(place / "kimbox.lock")
    folder = Path(box.repositories[0].url)
    assert place / "repositories/setup" == folder
    assert "./repositories/setup" == lock.repositories["setup"].url
    assert lock.repositories["setup"].commit == Mirror.of(box.repositories[0]).resolve("HEAD").commit
    assert "#!/bin/sh\n# $Id$\n" == (folder / "below/link").read_text()
    assert {"kimbox.yaml", "kimbox.lock", "repositories"} == {path.name for path in place.iterdir()}


def test_an_unchanged_folder_is_stored_once(kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """The next save refers to the same bundle. A changed one gets another."""
    save(kimbox, world / "store")
    before = {path.name for path in (world / "store/files").iterdir()}
    save(kimbox, world / "store")
    assert before == {path.name for path in (world / "store/files").iterdir()}
    folder = world / "project/setup"
    (folder / "more").touch()
    _write(machine, "./setup", mirror_of(folder).resolve("HEAD"))
    save(kimbox, world / "store")
    assert 2 == len({path.name for path in (world / "store/files").iterdir()} - before)  # bundle and lock


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("/etc", "bad-path"),
        ("../project/setup", "outside-spec-folder"),
        ("file:///srv/git/x.git", "unsafe-save"),
    ],
)
def test_a_spec_that_reads_this_host(
    kimbox: Kimbox, machine: Machine, world: Path, monkeypatch: pytest.MonkeyPatch, url: str, code: str
) -> None:
    """Whoever wrote the save could read a folder of this host in the box. It is refused."""
    monkeypatch.setattr(folders, "packed", lambda kept, *_: (kept, {}))
    _write(machine, url, Pin("1" * 40, "2" * 40))
    save(kimbox, world / "store")
    status, out, _ = kimbox("--json", "create", "other", "--from", str(world / "store"))
    problem = error(out, "create")
    assert (3, code) == (status, problem.get("problems", [problem])[0]["code"])
    assert not Machine("other").exists


def test_a_new_box_shares_no_folder_of_the_host(
    kimbox: Kimbox, machine: Machine, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mounts` of a save are those of the saving host: the new box has none, also if its spec is not of kimbox."""
    monkeypatch.setattr(folders, "packed", lambda kept, *_: (kept, {}))
    spec = makesaved.SPEC | {"mounts": [{"location": "/home", "mount_point": "/work", "writable": True}]}
    kept = machine.locks / f"{makesaved.MANIFEST}.yaml"
    kept.write_text(json.dumps(spec))
    save(kimbox, world / "store")
    code, out, err = kimbox("--json", "create", "other", "--from", str(world / "store"))
    assert 0 == code, err + out
    assert () == load_box(Machine("other").folder / SPEC_FOLDER / "kimbox.yaml").mounts
    kept.write_text(f"# not JSON\n{json.dumps(spec)}")
    save(kimbox, world / "other-store")
    status, out, _ = kimbox("--json", "create", "third", "--from", str(world / "other-store"))
    assert (3, "unsafe-save") == (status, error(out, "create")["code"])
    assert not Machine("third").exists


def bundle_of(folder: Path, *arguments: str) -> Path:
    """Returns a bundle of a git repository in a folder."""
    env = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), "x")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"], ["update-ref", "refs/kimbox/pin", "HEAD"]):
        run(["git", "-C", folder, *words], env=env)
    run(["git", "-C", folder, "bundle", "create", "-q", folder.parent / "bundle", *arguments], env=env)
    return folder.parent / "bundle"


@pytest.mark.parametrize("kind", ["no bundle", "another commit", "a submodule", "another digest"])
def test_a_damaged_folder(world: Path, kind: str) -> None:
    """It is an error that names the object. Nothing of it stays."""
    folder = fill(world / "folder")
    commit = mirror_of(folder).resolve("HEAD").commit
    source = world / "bundle"
    write_bundle(mirror_of(folder), commit, source)
    if kind == "no bundle":
        source.write_bytes(b"# v2 git bundle\nx")
    elif kind == "another commit":
        commit = "1" * 40
    elif kind == "a submodule":
        (folder / "sub").mkdir()
        (folder / "sub/file").touch()
        bundle_of(folder / "sub", "refs/kimbox/pin")
        (folder / "bundle").unlink()
        source = bundle_of(folder, "refs/kimbox/pin")
        commit = run(["git", "-C", folder, "rev-parse", "HEAD"]).stdout.strip()
    store = FolderStore(world / "store")
    stored, _ = packs.put_file(store, "files/000001-", source)
    if kind == "another digest":
        (store.folder / stored.name).write_bytes(source.read_bytes()[:-1] + b"x")
    place = world / "place"
    place.mkdir()
    with refused(KimboxError, "save-damaged", object=stored.name):
        folders.unpack(store, {"setup": Folder(commit, stored)}, place)
    assert [] == [path for path in place.rglob("*") if path.is_file()]
