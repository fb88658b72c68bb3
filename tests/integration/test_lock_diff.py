"""kimbox diff: between two locks, between a lock and a box; and the commits between two others."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import clirun
import makebox
import makemachine
import pytest
import tinyimage
from clirun import Kimbox
from refused import refused

from kimbox import paths
from kimbox.actions import diff as compare
from kimbox.errors import StateError
from kimbox.guest import ssh
from kimbox.guest.ssh import Answer
from kimbox.lock.apt.packages import LockedPackage
from kimbox.lock.diff import Change, Kind, as_json, as_text, diff
from kimbox.lock.git import history
from kimbox.lock.git.history import Between
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock, PinnedRepository, read_lock, write_lock
from kimbox.machine import delivered_locks
from kimbox.machine.delivered_locks import Delivered
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.spec.model import Repository

kimbox, world = clirun.kimbox, clirun.world  # fixtures

A, B = "a" * 40, "b" * 40
CODE = PinnedRepository("https://x.org/code.git", "main", A, B)
SETUP = PinnedRepository("./setup", "HEAD", A, B)
LOCK = Lock("d" * 64, "e" * 64, {"setup": SETUP, "code": CODE})


def test_equal_locks_do_not_differ() -> None:
    """The text is empty, and the JSON has no difference."""
    lock_diff = diff(LOCK, LOCK)
    assert not lock_diff
    none: dict[str, object] = {"added": {}, "removed": {}, "moved": {}}
    assert [] == as_text(lock_diff, {})
    assert {"spec": None, "image": None, "repositories": {}, "packages": none} == as_json(lock_diff, {})


def test_packages_that_differ_are_named() -> None:
    """Added, removed and moved packages. Another build of the same version is a move."""

    def lock(**versions: tuple[str, str]) -> Lock:
        named = {name: LockedPackage.parse(f"{text} all {digest * 64}") for name, (text, digest) in versions.items()}
        return attrs.evolve(LOCK, packages=attrs.evolve(tinyimage.LOCKED, versions=named))

    old = lock(gone=("1", "a"), same=("1:2-3", "a"), moved=("1.0", "a"), rebuilt=("5", "a"))
    new = lock(came=("7~rc1", "a"), same=("1:2-3", "a"), moved=("1.1", "b"), rebuilt=("5", "b"))
    assert [
        "package came: new, 7~rc1",
        "package gone: removed, was 1",
        "package moved: 1.0 -> 1.1",
        "package rebuilt: 5 -> 5 (another build of it)",
    ] == as_text(diff(old, new), {})
    changes = as_json(diff(old, new), {})["packages"]
    assert ({"came": "7~rc1"}, {"gone": "1"}) == (changes["added"], changes["removed"])
    assert [f"1.0 all {'a' * 64}", f"1.1 all {'b' * 64}"] == changes["moved"]["moved"]


def test_every_kind_of_change_is_listed() -> None:
    """Spec, image; repositories that were added, removed or moved, or have another URL or ref. setup is first."""
    moved = attrs.evolve(CODE, commit=B, tree=A)
    other = attrs.evolve(CODE, url="https://y.org/code", ref="v2")
    old = attrs.evolve(LOCK, repositories={"setup": SETUP, "code": CODE, "gone": CODE, "same": CODE, "z": CODE})
    repositories = {"setup": attrs.evolve(SETUP, commit=B), "code": moved, "new": CODE, "same": CODE, "z": other}
    lock_diff = diff(old, Lock("f" * 64, None, repositories))
    assert (Change("d" * 64, "f" * 64), Change("e" * 64, None)) == (lock_diff.spec, lock_diff.image)
    kinds = {change.name: change.kind for change in lock_diff.repositories}
    assert {
        "setup": Kind.MOVED, "code": Kind.MOVED, "gone": Kind.REMOVED, "new": Kind.ADDED, "z": Kind.MOVED
    } == kinds  # fmt: skip
    assert "setup" == lock_diff.repositories[0].name
    between = Between(("b1 came",), ("a1 went",), 3, 1)
    assert [
        "spec: dddddddddddd -> ffffffffffff",
        "image: eeeeeeeeeeee -> none",
        "setup: aaaaaaaaaaaa -> bbbbbbbbbbbb",
        "code: aaaaaaaaaaaa -> bbbbbbbbbbbb",
        "  + b1 came",
        "  - a1 went",
        "  (2 more)",
        "gone: removed, https://x.org/code.git main at aaaaaaaaaaaa",
        "new: added, https://x.org/code.git main at aaaaaaaaaaaa",
        "z: url https://x.org/code.git -> https://y.org/code",
        "z: ref main -> v2",
    ] == as_text(lock_diff, {"code": between})
    change = as_json(lock_diff, {"code": between})["repositories"]["code"]
    commits = (change["old"]["commit"], change["new"]["commit"])
    assert ("moved", (A, B), 2) == (change["kind"], commits, change["log"]["left_out"])


def test_the_log_between_two_commits(tmp_path: Path, world: Path) -> None:
    """Forwards, backwards and on another branch. Control characters are replaced, and the number is limited."""
    source = tmp_path / "code"
    first = makebox.make_repository(source)
    second = makebox.commit(source, {"a": "two\n"})
    makebox.git(source, "commit", "--amend", "-qm", "evil\x1b[2J\u202e")
    third = makebox.git(source, "rev-parse", "HEAD")
    code = Mirror.of(Repository("code", f"file://{source}", False, "main", "/opt"))
    code.ensure(third)
    forward = history.between(f"file://{source}", first, third)
    assert forward == Between((f"{third[:7]} evil\ufffd[2J\ufffd",), (), 1, 0)
    assert history.between(f"file://{source}", third, first) == Between((), forward.came, 0, 1)
    assert history.between(f"file://{source}", first, second) is None  # never fetched
    assert history.between("https://elsewhere.invalid/other", first, third) is None
    makebox.git(source, "branch", "aside", second)
    code.resolve("aside")
    assert history.between(f"file://{source}", second, third) == Between(forward.came, (f"{second[:7]} work",), 1, 1)
    for number in range(history.MAX_LINES + 3):
        last = makebox.git(source, "commit-tree", "-p", third, "-m", f"{number}", f"{third}^{{tree}}")
        third = last
    makebox.git(source, "branch", "many", last)
    code.resolve("many")
    long = history.between(f"file://{source}", first, last)
    assert long
    assert (history.MAX_LINES, history.MAX_LINES + 4, 4) == (len(long.came), long.came_count, long.left_out)


def test_the_date_of_a_commit(tmp_path: Path, world: Path) -> None:
    """It is read from a mirror that has the commit, in the time zone of the commit. Without a mirror it is unknown."""
    source = tmp_path / "code"
    first = makebox.make_repository(source)
    code = Mirror.of(Repository("code", f"file://{source}", False, "main", "/opt"))
    assert None is history.date_of(code.url, first)
    code.ensure(first)
    shown = history.date_of(code.url, first)
    assert shown is not None
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}([+-][0-9:]{5}|Z)", shown)
    assert makebox.git(source, "show", "-s", "--format=%cI", first) == shown
    for commit in ("main", "--output=x", "a" * 40):
        assert None is history.date_of(code.url, commit)


def test_a_mirror_is_found_without_the_credentials_of_its_url(tmp_path: Path, world: Path) -> None:
    """The URL in a lock has no user name, the URL of the mirror has one."""
    source = tmp_path / "code.git"
    first = makebox.make_repository(source)
    second = makebox.commit(source, {"a": "two\n"})
    near = Mirror.of(Repository("code", f"file://{source}", False, "main", "/opt"))
    near.resolve("main")
    far = Mirror.of(Repository("code", "ssh://git@host.invalid/x/code.git", False, "main", "/opt"))
    near.path.rename(far.path)
    commits = history.between("ssh://host.invalid/x/code.git", first, second)
    assert commits
    assert 1 == commits.came_count


@pytest.fixture
def locks(world: Path) -> tuple[Path, Path]:
    """Two lock files with a repository at two commits, which a mirror has."""
    first = makebox.make_repository(world / "code")
    second = makebox.commit(world / "code", {"a": "two\n"})
    code = Repository("code", f"file://{world}/code", False, "main", "/opt")
    Mirror.of(code).resolve("main")
    files = world / "work/old.lock", world / "work/new.lock"
    for file, commit in zip(files, (first, second), strict=True):
        write_lock(file, attrs.evolve(LOCK, repositories={"code": PinnedRepository(code.url, "main", commit, B)}))
    return files


def test_two_files(kimbox: Kimbox, locks: tuple[Path, Path]) -> None:
    """As text and as JSON; equal files are reported as equal. The exit status is 0."""
    code, out, _ = kimbox("diff", "old.lock", str(locks[1]))
    assert 0 == code
    assert out.startswith("code: ")
    assert " work\n" in out
    assert (0, "old.lock and old.lock are equal\n") == kimbox("diff", "old.lock", "old.lock")[:2]
    code, out, _ = kimbox("diff", "--json", "old.lock", "new.lock")
    result = clirun.result(out, "diff")
    assert (True, "old.lock", None) == (result["differs"], result["old"], result["image"])
    assert 1 == result["repositories"]["code"]["log"]["came_count"]
    assert clirun.result(kimbox("diff", "old.lock", "old.lock", "--json")[1], "diff")["differs"] is False


def test_a_revision_of_git(kimbox: Kimbox, locks: tuple[Path, Path], world: Path) -> None:
    """REV:PATH is the lock of that commit."""
    work = world / "work"
    makebox.git(work, "init", "-q")
    locks[0].rename(work / "kimbox.lock")
    makebox.commit(work, {"x": ""})
    locks[1].rename(work / "kimbox.lock")
    code, out, _ = kimbox("diff", "HEAD:kimbox.lock", "kimbox.lock")
    assert (0, True) == (code, " work\n" in out)
    for wrong in ("HEAD:missing.lock", "nosuch:kimbox.lock", "HEAD:"):
        code, out, _ = kimbox("--json", "diff", wrong, "kimbox.lock")
        error = clirun.error(out, "diff")
        assert (5, "file-not-found", wrong) == (code, error["code"], error["fields"]["path"])
    code, _, err = kimbox("diff", "HEAD:x", "kimbox.lock")
    assert (3, True) == (code, "HEAD:x:1:1" in err)


@pytest.mark.parametrize(
    ("wrong", "error_code"),
    [("nosuch", "box-not-found"), ("../up", "bad-name"), ("no such", "bad-name"), ("x" * 300, "bad-name")],
)
def test_an_argument_that_is_not_found(kimbox: Kimbox, locks: tuple[Path, Path], wrong: str, error_code: str) -> None:
    """An argument that is no file and no box is an error that names it."""
    code, _, err = kimbox("diff", wrong, "new.lock")
    assert (5, True) == (code, wrong in err)
    error = clirun.error(kimbox("--json", "diff", wrong, "new.lock")[1], "diff")
    assert (error_code, wrong) == (error["code"], error["fields"]["name"])
    assert 3 == kimbox("diff", "nosuch.lock", "new.lock")[0]


def provisioned(digest: str, lock: Lock) -> Machine:
    """A machine that runs that lock."""
    machine = makemachine.make_machine()
    delivered_locks.keep(machine, Delivered(digest, lock))
    makemachine.tell(machine, makemachine.event("ready", manifest=digest))
    return machine


def test_the_name_of_a_box_means_the_lock_that_it_runs(kimbox: Kimbox, locks: tuple[Path, Path], world: Path) -> None:
    """Without arguments, the box of this folder is compared with the lock of its spec."""
    provisioned("1" * 64, read_lock(locks[0]))
    code, out, _ = kimbox("diff", "tiny", "new.lock")
    assert (0, True) == (code, " work\n" in out)
    spec = world / "work/kimbox.yaml"
    spec.write_text("kimbox: 1\nname: tiny\nbase: [_defaults/debian.yaml]\n")
    code, out_json, _ = kimbox("--json", "diff")
    error = clirun.error(out_json, "diff")
    assert (3, "lock-not-found") == (code, error["code"])
    assert ["kimbox.lock"] == [Path(problem["file"]).name for problem in error["problems"]]
    locks[1].rename(world / "work/kimbox.lock")
    assert out == kimbox("diff")[1]
    assert (0, "tiny" in out) == (kimbox("diff", "old.lock")[0], False)


def test_the_packages_of_a_box_that_answers(
    kimbox: Kimbox, locks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages that were installed, removed or moved in it are listed. Invalid lines of its answer are ignored."""

    @attrs.frozen
    class Guest:
        endpoint: object

        def __enter__(self) -> Guest:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, command: str, *, timeout_s: float) -> Answer:
            lines = [
                "ii  same 1 all",
                "hi  held 1 all",
                "iW  awaits 1 all",
                "ii  moved 2 amd64",
                "ii  came 7 all",
                "rc  gone 1 all",
                "ii  ../x 1 all",
                "\x1b",
            ]
            return Answer(0, "\n".join(lines) + "\n", "")

    named = {name: LockedPackage("1", "all", "a" * 64) for name in ("same", "held", "awaits", "moved", "gone")}
    lock = attrs.evolve(read_lock(locks[0]), packages=attrs.evolve(tinyimage.LOCKED, versions=named))
    provisioned("1" * 64, lock)
    monkeypatch.setattr(compare, "state", lambda _: State.READY)
    monkeypatch.setattr(compare, "reach", lambda _: None)
    monkeypatch.setattr(ssh, "Guest", Guest)
    result = clirun.result(kimbox("diff", "tiny", "tiny", "--json")[1], "diff")
    assert (result["differs"], result["installed"]["old"]) == (False, result["installed"]["new"])
    assert result["installed"]["old"] == {
        "added": {"came": "7"}, "removed": {"gone": "1"}, "moved": {"moved": [f"1 all {'a' * 64}", "2 amd64 "]}
    }  # fmt: skip
    assert "the box tiny, changed since its lock: package came: new, 7" in kimbox("diff", "tiny", "old.lock")[1]
    monkeypatch.setattr(compare, "state", lambda _: State.HALTED)
    assert clirun.result(kimbox("diff", "tiny", "old.lock", "--json")[1], "diff")["installed"]["old"] is None


def test_the_image_of_a_box_is_that_of_its_record(locks: tuple[Path, Path]) -> None:
    """A lock that was sent to the box later may name another image."""
    machine = provisioned("1" * 64, attrs.evolve(LOCK, image="0" * 64))
    assert attrs.evolve(LOCK, image=makemachine.RECORD.image) == delivered_locks.lock_of(machine)


def test_what_a_box_runs_may_be_unknown(world: Path) -> None:
    """The box was never provisioned, or not by this host, or reports no digest. The error has a hint."""
    machine = makemachine.make_machine()
    with refused(StateError, "lock-unknown", name="tiny", manifest="") as caught:
        delivered_locks.lock_of(machine)
    assert "kimbox provision tiny" in str(caught.value.hint)
    makemachine.tell(machine, makemachine.event("ready", manifest="../../../etc/passwd"))
    with refused(StateError, "lock-unknown", name="tiny", manifest=""):
        delivered_locks.lock_of(machine)
    makemachine.tell(machine, makemachine.event("ready", manifest="2" * 64))
    with refused(StateError, "lock-unknown", name="tiny", manifest="2" * 64) as caught:
        delivered_locks.lock_of(machine)
    assert "(222222222222) was not kept" in caught.value.message


def test_a_box_in_maintain_mode_reports_no_manifest(world: Path) -> None:
    """The last one that was kept counts, at first that of the creation of the machine. An older boot does not count."""
    machine = makemachine.make_machine()
    Delivered("1" * 64, LOCK, spec=b"first").write(machine.locks)
    makemachine.tell(machine, makemachine.event("ready", manifest=""))
    assert b"first" == delivered_locks.spec_of(machine)
    Delivered("0" * 64, LOCK, spec=b"second").write(machine.locks)
    assert b"second" == delivered_locks.spec_of(machine)
    Delivered("1" * 64, LOCK, spec=b"first").write(machine.locks)
    assert b"first" == delivered_locks.spec_of(machine)


def test_locks_are_kept_as_long_as_the_box_can_go_back_to_them(world: Path) -> None:
    """The good one, the wanted one and the one that is sent; no more."""
    machine = provisioned("1" * 64, LOCK)
    delivered_locks.keep(machine, Delivered("2" * 64, LOCK))
    makemachine.tell(machine, makemachine.event("ready", manifest="1" * 64, wanted="2" * 64))
    delivered_locks.keep(machine, Delivered("3" * 64, LOCK))
    assert ["1" * 64, "2" * 64, "3" * 64] == sorted(file.stem for file in machine.locks.iterdir())
    assert delivered_locks.lock_of(machine).repositories == LOCK.repositories
    makemachine.tell(machine, makemachine.event("ready", manifest="3" * 64))
    delivered_locks.keep(machine, Delivered("3" * 64, LOCK))
    assert ["3" * 64] == [file.stem for file in machine.locks.iterdir()]
    assert not list(paths.mirrors_dir().glob("*"))
