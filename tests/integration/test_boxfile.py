"""box.env and box.json: what a box says it is, for a shell, for Python, and for the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import fakeguest
import feignedworld
import jsonschema
import makebox
import makemachine
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step
from feignedworld import World
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kimbox import __version__, paths
from kimbox.actions import stop
from kimbox.cli.status import summary_of
from kimbox.lock.lockfile import format_lock, make_lock
from kimbox.machine import delivered_locks
from kimbox.machine.delivered_locks import Delivered
from kimbox.render.boxfile import box_env, box_json, describe
from kimbox.render.quote import assignments, parse_assignments
from kimbox.run import run

guest = fakeguest.guest  # a fixture
world = feignedworld.world  # a fixture

SCHEMA = json.loads((paths.schemas_dir() / "boxfile.schema.json").read_text())
EVENT = json.loads((paths.schemas_dir() / "events.schema.json").read_text())

NAMES = st.from_regex(r"KIMBOX_[A-Z0-9_]{1,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)

#: What a file may be made of that is nearly right.
PIECES = st.sampled_from(["KIMBOX_A", "KIMBOX_B", "=", "'", "'\"'\"'", '"', "\n", "$", "`", "\\", "x", " ", "#", ";"])

#: Sources a file, then writes each variable asked for to the file named last, with a NUL after it.
PRINT = '. "$1" || exit; for n in $2; do eval "v=\\$$n"; printf "%s=%s\\0" "$n" "$v"; done >"$3"'


def in_a_shell(path: Path, names: list[str]) -> dict[str, str]:
    """What a shell has after it sourced that file."""
    out = path.with_name("printed")
    run(["dash", "-uc", PRINT, "x", path, " ".join(names), out])
    pairs = out.read_bytes().decode().split("\0")[:-1]
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("env") / "box.env"


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
@example({"KIMBOX_A": "it's $(id) `id` \\ \n\"\t'", "KIMBOX_B": "", "KIMBOX_C": "'''"})
def test_what_is_written_is_read_by_both(env_file: Path, values: dict[str, str]) -> None:
    """A real sh and the parser have exactly the values that were written."""
    env_file.write_bytes(assignments(values))
    assert parse_assignments(env_file.read_bytes()) == values
    assert in_a_shell(env_file, list(values)) == values


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join) | st.lists(PIECES).map(lambda p: f"KIMBOX_A='{''.join(p)}'\n"))
@example("KIMBOX_A=''\nKIMBOX_B='a'\"'\"''\n")
@example("KIMBOX_A='x'y\n")
def test_what_is_taken_means_the_same_to_a_shell(env_file: Path, text: str) -> None:
    """Whatever the parser does not refuse, a real sh reads as the same values."""
    try:
        values = parse_assignments(text.encode())
    except ValueError:
        return
    env_file.write_bytes(text.encode())
    assert in_a_shell(env_file, list(values)) == values


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A=b\n", "line 1"), ("A='b'", "line 1"), ("A='b'\n\nB='c'\n", "line 2"), ("A='b' \n", "line 1"),
        ("export A='b'\n", "line 1"), ("A='b'; id\n", "line 1"), ("a='b'\n", "line 1"), ("A='b\0'\n", "line 1"),
        ("# a comment\n", "line 1"), ("A='x\ny'\nB=$(id)\n", "line 3"), ("A='b'\nA='c'\n", "assigns A again"),
        ("A='b'\r\n", "line 1"), ("A='b'c'\n", "line 1"), ("A='\\''\n", "line 1"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str, why: str) -> None:
    """With the line at fault."""
    with pytest.raises(ValueError, match=why):
        parse_assignments(text.encode())


def test_too_much_or_no_text_is_refused() -> None:
    """Before anything is made of it."""
    with pytest.raises(ValueError, match="at most"):
        parse_assignments(b"A='" + b"x" * (1 << 20) + b"'\n")
    with pytest.raises(ValueError, match="utf-8"):
        parse_assignments(b"A='\xff'\n")


def test_both_files_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit, url, ref, tree and digest."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    box = box_with(tmp_path)
    lock = make_lock(box, image="e" * 64)
    said = describe(box, lock, "f" * 64)
    env = parse_assignments(box_env(said))
    assert json.loads(box_json(said)) == said
    assert box_json(said).startswith(b"{\n")
    assert said["lock_digest"] == lock.digest != make_lock(box).digest
    assert (env["KIMBOX_BOX"], env["KIMBOX_VERSION"], env["KIMBOX_IMAGE"]) == ("tiny", __version__, "f" * 64)
    assert env["KIMBOX_REPOSITORIES"] == "code setup"
    pin = lock.repositories["code"]
    assert said["repositories"]["code"] == {
        "url": pin.url, "ref": "main", "commit": pin.commit, "tree": pin.tree, "path": "/home/vagrant/src/code"
    }  # fmt: skip
    assert env["KIMBOX_REPOSITORY_CODE_COMMIT"] == pin.commit
    assert lock.digest == run(["sha256sum"], input=format_lock(lock)).stdout.split()[0]


def read_files(guest: FakeGuest) -> dict[str, Any]:
    """box.json of the guest, which box.env must agree with."""
    said: dict[str, Any] = json.loads(guest.path("/etc/kimbox/box.json").read_text())
    jsonschema.validate(said, SCHEMA)
    env = parse_assignments(guest.path("/etc/kimbox/box.env").read_bytes())
    assert in_a_shell(guest.path("/etc/kimbox/box.env"), list(env)) == env
    done = said["provisioned"]
    assert (env["KIMBOX_MANIFEST"], env["KIMBOX_ROLE"]) == (said["manifest"], said["role"])
    assert (env["KIMBOX_PROVISIONED_AT"], env["KIMBOX_PROVISIONED_BY"]) == (done["at"] or "", done["by"])
    words = [
        ":".join(filter(None, (step, ",".join(f"{name}@{commit}" for name, commit in pins.items()))))
        for step, pins in said["stale"].items()
    ]
    assert env["KIMBOX_STALE"].split() == words
    assert (env["KIMBOX_SETUP_COMMIT"] or None, env["KIMBOX_UNPINNED"].split()) == (
        done["setup_commit"],
        said["unpinned"],
    )
    return said


@needs_namespace
def test_a_box_with_nothing_to_provision_says_what_it_is(guest: FakeGuest, tmp_path: Path) -> None:
    """Its first root is the first one, though it is good at once; the next is a new one."""
    box = attrs.evolve(makebox.make_box(tmp_path), repositories=(), provision=(), probes=())
    assert provision(guest, tmp_path, box) == 0
    assert "first" == read_files(guest)["provisioned"]["by"]
    guest.new_root()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert "resnap" == read_files(guest)["provisioned"]["by"]


@needs_namespace
def test_the_guest_says_what_it_is(guest: FakeGuest, tmp_path: Path) -> None:
    """`setup` finds the files; a new root gets them again; a kept one keeps them; by hand and secured is told."""
    setup = "#!/bin/sh\n. /etc/kimbox/box.env\necho \"I am $KIMBOX_BOX, $KIMBOX_ROLE, at '$KIMBOX_PROVISIONED_AT'\"\n"
    box = box_with(tmp_path, setup=setup)
    digest, _ = delivery(tmp_path, box)
    lock = make_lock(box)
    assert provision(guest, tmp_path, box) == 0
    told = guest.events(box=True)
    assert [e["event"] for e in told if e["event"] != "step"] == ["provisioning", "box", "box", "ready"]
    for line in told:
        jsonschema.validate(line | {"boot": "", "uptime_s": 1}, EVENT)
    assert "I am tiny, dev, at ''\n" in guest.log()
    first = read_files(guest)
    assert (first["manifest"], first["provisioned"]["by"], first["unpinned"]) == (digest, "first", [])
    assert first["provisioned"]["setup_commit"] == lock.repositories["setup"].commit
    assert first["lock_digest"] == lock.digest
    assert told[-2]["at"] == first["provisioned"]["at"]

    guest.new_boot()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert read_files(guest) == first
    guest.events()
    guest.new_root()
    (guest.path("/run/kimbox")).mkdir()
    guest.path("/run/kimbox/mode").write_text("resnap\n")
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    again = read_files(guest)
    assert (again["provisioned"]["by"], again["provisioned"]["boot_mode"]) == ("resnap", "resnap")
    assert provision(guest, tmp_path, box_with(tmp_path, step("more", "true"))) == 0
    assert read_files(guest)["provisioned"]["by"] == "keep"

    commit = makebox.commit(tmp_path / "setup", {"setup": "#!/bin/sh\ntrue\n"})
    assert guest.run("/persistent/runsetup", f"file:///host{tmp_path}/setup", "main").code == 0
    by_hand = read_files(guest)
    assert (by_hand["unpinned"], by_hand["provisioned"]["setup_commit"]) == (["setup"], commit)
    assert by_hand["provisioned"]["by"] == "hand"
    guest.secure("director", "a.org")
    assert guest.run("/persistent/runsetup").code == 0
    secured = read_files(guest)
    assert (secured["unpinned"], secured["provisioned"]["by"]) == ([], "hand")
    assert (secured["role"], secured["site"], secured["username"]) == ("director", "a.org", "me")


@needs_namespace
def test_a_failed_root_does_not_say_that_it_was_provisioned(guest: FakeGuest, tmp_path: Path) -> None:
    """The time is missing until everything was done."""
    assert provision(guest, tmp_path, box_with(tmp_path, step("bad", "false"))) == 1
    assert read_files(guest)["provisioned"]["at"] is None
    assert provision(guest, tmp_path, box_with(tmp_path, step("bad", "true"))) == 0
    assert read_files(guest)["provisioned"]["at"]


@needs_namespace
def test_a_box_without_anything_to_do_has_the_files_too(guest: FakeGuest, tmp_path: Path) -> None:
    """Its shortest way to ready writes them once; what was lost comes back."""
    digest, tar = delivery(tmp_path, makebox.make_box(tmp_path))
    assert guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).code == 0
    for _ in range(2):
        assert guest.run("/usr/lib/kimbox/provisiond", "--early").code == 0
        assert [e["event"] for e in guest.events(box=True)] == ["box", "ready"]
        said = json.loads(guest.path("/etc/kimbox/box.json").read_text())
        jsonschema.validate(said, SCHEMA)
        assert said["provisioned"]["setup_commit"] is None
        guest.path("/etc/kimbox/box.env").unlink()


@needs_namespace
def test_what_cannot_be_written_is_no_lie(guest: FakeGuest, tmp_path: Path) -> None:
    """Where there is no room, no old file goes on telling of another manifest; the box is ready all the same."""
    assert provision(guest, tmp_path, box_with(tmp_path)) == 0
    guest.path("/etc/kimbox/.json.new").mkdir()
    assert provision(guest, tmp_path, box_with(tmp_path, step("more", "true"))) == 0
    assert not guest.path("/etc/kimbox/box.env").exists()
    assert not guest.path("/etc/kimbox/box.json").exists()
    assert "cannot be written" in guest.log()


def test_status_tells_the_same(world: World) -> None:
    """What the guest told of its root, with what the host wrote into the manifest; nothing where it told nothing."""
    feignedworld.up(world)
    assert summary_of(world.machine)["provenance"] is None
    about = {"manifest": world.digest, "mode": "keep", "role": "dev", "site": "", "unpinned": "setup", "by": "first"}
    told = makemachine.event("box", **about, at="2026-01-02T03:04:05Z", commit="c" * 40)
    makemachine.tell(world.machine, told)
    said = summary_of(world.machine)["provenance"]
    jsonschema.validate(said, SCHEMA)
    assert (said["name"], said["image"], said["unpinned"]) == ("tiny", "e" * 64, ["setup"])
    assert said["provisioned"] == {
        "at": "2026-01-02T03:04:05Z", "by": "first", "boot_mode": "keep", "setup_commit": "c" * 40, "part": None
    }  # fmt: skip
    for odd in ("../../x", "", "f" * 64):
        makemachine.tell(world.machine, makemachine.event("box", manifest=odd, unpinned="", at="", by="keep"))
        said = summary_of(world.machine)["provenance"]
        assert (said is None) == (len(odd) < 64)
    stop.halt(world.machine)
    delivered_locks.keep(world.machine, Delivered("a" * 64, world.lock, described=b"{}"))
    assert {f.suffix for f in world.machine.locks.iterdir()} == {".lock", ".json"}
