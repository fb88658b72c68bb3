"""Steps and the commits that they ran under, in the guest's own scripts: what runs again, and what is stale.

And what a power cut leaves of it: what was told as done is on the disk.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import tarfile
from pathlib import Path

import attrs
import fakeguest
import jsonschema
import makebox
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step, steps_of

from kimbox import paths
from kimbox.guest import stale
from kimbox.guest.events import parse_line
from kimbox.lock.lockfile import make_lock
from kimbox.render import sealing
from kimbox.spec.model import Box, Probe, Repository, Run

guest = fakeguest.guest  # a fixture

PROVISIOND = "/usr/lib/kimbox/provisiond"
EVENT = json.loads((paths.schemas_dir() / "events.schema.json").read_text())
BOXFILE = json.loads((paths.schemas_dir() / "boxfile.schema.json").read_text())

#: Steps that write down each time they run: by name, by path, neither, and one that says that it uses nothing.
STEPS = ("named", "path", "plain", "nothing")


@pytest.fixture
def box(guest: FakeGuest, tmp_path: Path) -> Box:
    """A box with a step of each kind; `more` is a third repository."""
    made = box_with(
        tmp_path,
        step("named", "echo x >>/tmp/named", uses=("code",)),
        step("path", "test -d /home/vagrant/src/code; echo x >>/tmp/path"),
        step("plain", "echo x >>/tmp/plain"),
        step("nothing", "echo x >>/tmp/nothing", uses=()),
        setup="#!/bin/sh\ntest -e /home/vagrant/src/code/a && echo x >>/tmp/setup\n",
    )
    makebox.make_repository(tmp_path / "more", {"b": "one\n"})
    more = Repository("more", f"file://{tmp_path}/more", False, "main", "/opt/more")
    return attrs.evolve(made, repositories=(*made.repositories, more))


@pytest.fixture(autouse=True)
def _more_has_a_place(guest: FakeGuest) -> None:
    guest.path("/opt").mkdir(exist_ok=True)


def counts(guest: FakeGuest) -> dict[str, int]:
    """How often each step, and `setup`, has run."""
    files = {name: guest.path(f"/tmp/{name}") for name in (*STEPS, "setup")}
    return {name: len(file.read_text().splitlines()) for name, file in files.items() if file.exists()}


def stale_in(guest: FakeGuest) -> dict[str, dict[str, str]]:
    """The stale steps as the last event `box` tells them; box.json agrees, and both are of their schemas."""
    told = [event for event in guest.events(box=True) if event["event"] == "box"][-1]
    whole = told | {"boot": "11111111-2222-4333-8444-555555555555", "uptime_s": 1}
    jsonschema.validate(whole, EVENT)
    event = parse_line(json.dumps(whole).encode())
    assert event
    found = stale.from_event(event)
    said = json.loads(guest.path("/etc/kimbox/box.json").read_text())
    jsonschema.validate(said, BOXFILE)
    assert found == said["stale"]
    return found


def move(folder: Path, name: str, text: str) -> str:
    """A new commit of a repository."""
    return makebox.commit(folder / name, {"a" if name == "code" else "b": text})


def run_part(guest: FakeGuest, folder: Path, box: Box, how: str, name: str) -> int:
    """Delivers a box for a part of its steps and runs it."""
    digest, tar = delivery(folder, box)
    assert guest.run("/usr/lib/kimbox/receive", digest, "--start", how, name, stdin=str(tar)).code == 0
    return guest.run(PROVISIOND).code


@needs_namespace
def test_what_uses_a_repository_runs_again_when_it_moves(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """By name and by path; any other is stale, `setup` too; one that uses nothing never is; a part clears its own."""
    once = dict.fromkeys((*STEPS, "setup"), 1)
    assert provision(guest, tmp_path, box) == 0
    assert stale_in(guest) == {}
    former = make_lock(box).repositories["code"].commit
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, box) == 0
    assert counts(guest) == once | {"named": 2, "path": 2}
    assert stale_in(guest) == {"setup": {"code": former}, "plain": {"code": former}}

    guest.new_boot()
    assert guest.run(PROVISIOND, "--early").code == 0
    assert stale_in(guest) == {"setup": {"code": former}, "plain": {"code": former}}

    assert run_part(guest, tmp_path, box, "only", "plain") == 0
    assert stale_in(guest) == {"setup": {"code": former}}
    assert run_part(guest, tmp_path, box, "only", "setup") == 0
    assert stale_in(guest) == {}
    assert provision(guest, tmp_path, box) == 0
    assert stale_in(guest) == {}
    assert counts(guest) == once | dict.fromkeys(("named", "path", "plain", "setup"), 2)


@needs_namespace
def test_a_repository_that_nothing_uses_makes_all_but_the_users_of_others_stale(
    guest: FakeGuest, tmp_path: Path, box: Box
) -> None:
    """Where it moves or goes; where one is added nothing of an earlier commit can be in the box."""
    without = attrs.evolve(box, repositories=box.repositories[:2])
    assert provision(guest, tmp_path, without) == 0
    assert provision(guest, tmp_path, box) == 0
    assert stale_in(guest) == {}
    assert run_part(guest, tmp_path, box, "from", "setup") == 0
    former = make_lock(box).repositories["more"].commit
    move(tmp_path, "more", "two\n")
    assert provision(guest, tmp_path, box) == 0
    assert stale_in(guest) == {"setup": {"more": former}, "plain": {"more": former}}
    assert provision(guest, tmp_path, without) == 0
    assert stale_in(guest) == {"setup": {"more": former}, "plain": {"more": former}}
    assert counts(guest) == dict.fromkeys((*STEPS, "setup"), 2)


@needs_namespace
def test_the_way_back_runs_the_users_too(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """A box that goes back to its last good manifest has programs of its commits, and nothing is stale."""
    bad = attrs.evolve(box, provision=(*box.provision, step("bad", "exit 3")))
    assert provision(guest, tmp_path, box) == 0
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, bad) == 1
    assert {"named": 2, "path": 2, "plain": 1}.items() <= counts(guest).items()
    guest.new_boot()
    assert guest.run(PROVISIOND).code == 0
    assert guest.path("/home/vagrant/src/code/a").read_text() == "one\n"
    assert {"named": 3, "path": 3, "plain": 1}.items() <= counts(guest).items()
    assert stale_in(guest) == {}


@needs_namespace
def test_a_new_root_has_nothing_stale(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """All steps run there."""
    assert provision(guest, tmp_path, box) == 0
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, box) == 0
    guest.new_root()
    assert guest.run(PROVISIOND).code == 0
    assert stale_in(guest) == {}
    assert counts(guest) == {"named": 3, "path": 3, "plain": 2, "nothing": 2, "setup": 2}


@needs_namespace
def test_a_step_of_each_boot_is_of_its_commit(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """In the boot in which a pin moves, a step that is `run: boot` runs again or is stale, as any is."""
    steps = tuple(attrs.evolve(each, run=Run.BOOT) for each in box.provision)
    box = attrs.evolve(box, provision=steps)
    assert provision(guest, tmp_path, box) == 0
    former = make_lock(box).repositories["code"].commit
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, box) == 0
    assert counts(guest) == dict.fromkeys(STEPS, 1) | {"named": 2, "path": 2, "setup": 1}
    assert stale_in(guest) == {"setup": {"code": former}, "plain": {"code": former}}
    guest.new_boot()
    assert guest.run(PROVISIOND).code == 0
    assert stale_in(guest) == {"setup": {"code": former}}


def forget(guest: FakeGuest) -> None:
    """Records as an older kimbox wrote them: the first line alone."""
    for file in guest.path("/var/lib/kimbox/done").iterdir():
        file.write_text(file.read_text().partition("\n")[0] + "\n")


@needs_namespace
def test_records_of_an_older_kimbox_stay_valid(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """Until a pin or the text really changes; what the repositories were at is known from their own records."""
    once = dict.fromkeys((*STEPS, "setup"), 1)
    assert provision(guest, tmp_path, box) == 0
    forget(guest)
    other = attrs.evolve(box, provision=(*box.provision, step("other", "true")))
    assert provision(guest, tmp_path, other) == 0
    assert (counts(guest), stale_in(guest)) == (once, {})

    forget(guest)
    former = make_lock(box).repositories["code"].commit
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, box) == 0
    assert counts(guest) == once | {"named": 2, "path": 2}
    assert stale_in(guest) == {"setup": {"code": former}, "plain": {"code": former}}


@needs_namespace
def test_an_older_kimbox_knows_the_records(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """The first line is the digest alone, as it compares it."""
    assert provision(guest, tmp_path, box) == 0
    for file in guest.path("/persistent/kimbox/current/steps").glob("*/env"):
        env = dict(re.findall(r"^(\w+)='(.*)'$", file.read_text(), re.MULTILINE))
        record = guest.path(f"/var/lib/kimbox/done/provision-{env['KIMBOX_STEP']}")
        assert record.read_text().splitlines()[0] == env["KIMBOX_STEP_DIGEST"]


@needs_namespace
def test_a_sealed_box_says_it_again(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """With the other last words that it repeats."""
    assert provision(guest, tmp_path, box) == 0
    former = make_lock(box).repositories["code"].commit
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, box) == 0
    guest.secure()
    assert guest.run(PROVISIOND).code in (0, 1)
    guest.events()
    assert guest.run("/usr/lib/kimbox/event", "--again").code == 0
    assert stale_in(guest) == {"setup": {"code": former}, "plain": {"code": former}}


@needs_namespace
def test_many_stale_steps_have_room(guest: FakeGuest, tmp_path: Path) -> None:
    """Names stand without commits where these have no room; the event stays one that the host takes."""
    steps = [step(f"{number:03}-{'n' * 40}", "true") for number in range(60)]
    box = box_with(tmp_path, *steps)
    assert provision(guest, tmp_path, box) == 0
    former = make_lock(box).repositories["code"].commit
    move(tmp_path, "code", "two\n")
    assert provision(guest, tmp_path, box) == 0
    found = stale_in(guest)
    assert found["setup"] == {"code": former}
    assert len(found) > 20
    assert {} in found.values()
    assert len(json.dumps(found)) < 8000


@needs_namespace
@pytest.mark.parametrize("record", ["\0\n\n", "x\nend", "d\n\t\nend\n", "d\n'$(touch /tmp/pwned)'\tx\nend\n"])
def test_a_record_that_is_none_is_no_harm(guest: FakeGuest, tmp_path: Path, box: Box, record: str) -> None:
    """A step whose record is damaged runs again."""
    assert provision(guest, tmp_path, box) == 0
    guest.path("/var/lib/kimbox/done/provision-plain").write_text(record)
    guest.path("/var/lib/kimbox/done/manifest").unlink()
    assert guest.run(PROVISIOND).code == 0
    assert counts(guest)["plain"] == 2
    assert not guest.path("/tmp/pwned").exists()
    assert stale_in(guest) == {}


#: In place of sync: keeps what would be on the disk from then on, and what had been told by then.
_POINT = r"""#!/bin/sh
n=$(ls /tmp/points 2>/dev/null | wc -l)
mkdir -p "/tmp/points/$n"
cp -r /var/lib/kimbox/done "/tmp/points/$n/done" 2>/dev/null
cp -r /etc/kimbox "/tmp/points/$n/box" 2>/dev/null
cp -P /persistent/kimbox/good "/tmp/points/$n/good" 2>/dev/null
ls /tmp/*.effect >"/tmp/points/$n/effects" 2>/dev/null
[ -d /home/vagrant/src/code/.git ] && echo repository-code >>"/tmp/points/$n/effects"
cp /dev/virtio-ports/org.kimbox.0 "/tmp/points/$n/events"
echo "$*" >"/tmp/points/$n/how"
"""


@attrs.frozen
class Point:
    """A moment at which everything was brought to the disk."""

    #: Records and effects that are there; steps that had been told as done before.
    records: set[str]
    effects: set[str]
    told: set[str]
    is_whole: bool
    #: Marks of the manifest: the root's record of it, the link `good`, and box.env.
    marks: set[str]
    ready: bool


def point(folder: Path) -> Point:
    lines = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    records = (
        {file.name for file in (folder / "done").iterdir() if file.stat().st_size}
        if (folder / "done").exists()
        else set()
    )
    effects = {Path(line).stem for line in (folder / "effects").read_text().splitlines()}
    is_complete = (folder / "box/box.env").exists() and "PROVISIONED_AT=''" not in (folder / "box/box.env").read_text()
    marks = {"good"} if (folder / "good").is_symlink() else set()
    return Point(
        records=records & {"provision-one", "provision-two", "setup-setup", "repository-code"},
        effects=effects,
        told={f"{e['kind']}-{e['name']}" for e in lines if e["event"] == "step" and e["status"] == "done"},
        is_whole=(folder / "how").read_text().strip() == "",
        marks=marks | ({"box"} if is_complete else set()) | ({"manifest"} if "manifest" in records else set()),
        ready=any(e["event"] == "ready" for e in lines),
    )


@needs_namespace
def test_what_is_told_as_done_is_on_the_disk(guest: FakeGuest, tmp_path: Path) -> None:
    """A power cut at any moment leaves effect and record of what was told, and no record without its effect."""
    guest.path("/usr/local/sbin/sync").write_text(_POINT)
    box = box_with(
        tmp_path,
        step("one", "touch /tmp/provision-one.effect"),
        step("two", "touch /tmp/provision-two.effect", run=Run.ALWAYS),
        setup="#!/bin/sh\ntouch /tmp/setup-setup.effect\n",
    )
    assert provision(guest, tmp_path, box) == 0
    folder = guest.path("/tmp/points")
    points = [point(folder / str(number)) for number in range(len(list(folder.iterdir())))]
    end = [json.loads(line) for line in (guest.ports / "org.kimbox.0").read_text().splitlines()]
    told = {f"{e['kind']}-{e['name']}" for e in end if e["event"] == "step" and e["status"] == "done"}
    wanted = {"provision-one", "provision-two", "setup-setup", "repository-code"}
    assert wanted <= told
    assert any(e["event"] == "ready" for e in end)
    for before, after in itertools.pairwise(points):
        assert after.records <= before.effects, "a record is in place before its effect is on the disk"
        assert after.told & wanted <= before.effects
        assert after.told & (wanted - {"provision-two"}) <= before.records
        assert not after.ready or before.marks == {"good", "box", "manifest"}
    assert points[-1].marks == {"good", "box", "manifest"}
    assert points[-1].effects >= wanted
    # What it costs: one sync of everything for each that ran and for the manifest, and one for each record.
    assert sum(each.is_whole for each in points) == len(box.repositories) + len(box.provision) + 1 + 1


@needs_namespace
def test_what_is_done_anew_is_no_longer_done(guest: FakeGuest, tmp_path: Path) -> None:
    """Before a step runs again the disk says so: cut short, it is not taken for done."""
    box = box_with(tmp_path, step("one", "touch /tmp/provision-one.effect"))
    assert provision(guest, tmp_path, box) == 0
    guest.path("/usr/local/sbin/sync").write_text(_POINT)
    guest.path("/tmp/provision-one.effect").unlink()
    guest.events()
    assert run_part(guest, tmp_path, box, "only", "one") == 0
    folder = guest.path("/tmp/points")
    points = [point(folder / str(number)) for number in range(len(list(folder.iterdir())))]
    begun = next(number for number, each in enumerate(points) if "provision-one" in each.effects)
    assert "provision-one" not in points[begun - 1].records


@needs_namespace
def test_a_boot_with_nothing_to_do_syncs_nothing(guest: FakeGuest, tmp_path: Path) -> None:
    """The shortest way to ready starts no such program."""
    assert provision(guest, tmp_path, box_with(tmp_path, step("one", "true"))) == 0
    guest.new_boot()
    guest.events()
    guest.path("/tmp/sync.log").unlink()
    assert guest.run(PROVISIOND, "--early").code == 0
    assert steps_of(guest.events()) == []
    assert not guest.path("/tmp/sync.log").exists()


@needs_namespace
def test_probes_alone_sync_no_records(guest: FakeGuest, tmp_path: Path) -> None:
    """A boot that runs nothing but probes brings box.env and box.json to the disk, and no more."""
    box = box_with(tmp_path, step("one", "true"), probes=(Probe("holds", "true", None, 5),))
    assert provision(guest, tmp_path, box) == 0
    guest.new_boot()
    guest.path("/tmp/sync.log").unlink()
    assert guest.run(PROVISIOND).code == 0
    assert guest.path("/tmp/sync.log").read_text().splitlines() == ["sync -f /etc/kimbox"]


@needs_namespace
def test_what_fails_when_done_anew_is_not_done_at_the_next_boot(guest: FakeGuest, tmp_path: Path) -> None:
    """A checkout that was lost and does not come back is no box that is ready, however it was before."""
    assert provision(guest, tmp_path, box_with(tmp_path)) == 0
    code = guest.path("/home/vagrant/src/code")
    shutil.rmtree(code)
    code.write_text("in the way")
    assert guest.run("/persistent/runsetup").code == 1
    guest.new_boot()
    guest.events()
    assert guest.run(PROVISIOND, "--early").code == 0
    assert guest.events() == []


@needs_namespace
def test_a_request_for_new_credentials_is_kept_before_it_is_answered(guest: FakeGuest, tmp_path: Path) -> None:
    """A power cut right after the answer does not ask the gateway once more with what was for one time."""
    assert provision(guest, tmp_path, box_with(tmp_path)) == 0
    guest.secure()
    with tarfile.open(guest.path("/run/credentials/@system/kimbox.rotate"), "w") as archive:
        for name, data in {"answers.env": sealing.username("you"), "password": b"new\n"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    guest.note_syncs("[ -s /persistent/secure/rotated ]")
    guest.run(PROVISIOND)
    assert [e["status"] for e in guest.events() if e["event"] == "rotated"] == ["done"]
    assert guest.was_synced_before("rotated")
    assert guest.was_synced_before("sealed")
