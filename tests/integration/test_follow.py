"""A box that follows a branch of its setup repository. In the guest's own scripts, with git's own server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import fakeguest
import feignedworld
import jsonschema
import makebox
import makemachine
import makeserver
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace
from feignedworld import World
from refused import refused

from kimbox import paths
from kimbox.actions.up import following
from kimbox.cli.status import summary_of
from kimbox.errors import SpecError, UsageError
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock, PinnedRepository, make_lock
from kimbox.render.manifest import render_manifest
from kimbox.spec.load import load_box
from kimbox.spec.model import Box

guest = fakeguest.guest  # a fixture
world = feignedworld.world  # a fixture

PROVISIOND = "/usr/lib/kimbox/provisiond"
PIN = PinnedRepository("https://example.org/x", "dev", "a" * 40, "b" * 40)
EVENT = json.loads((paths.schemas_dir() / "events.schema.json").read_text())


class Followed:
    """A box whose setup repository is served by git://, and the guest that has its manifest."""

    def __init__(self, guest: FakeGuest, folder: Path) -> None:
        self.guest, self.folder = guest, folder
        self.served = folder / "served"
        self.server: Any = None
        (folder / "served").mkdir()
        self.pinned = makebox.make_repository(self.served / "setup", {"setup": "#!/bin/sh\necho one\n"})
        script = guest.path("/usr/lib/kimbox/follow")
        script.write_text(script.read_text().replace("TRY_S=10", "TRY_S=1"))
        self.url = self.serve()
        plain = box_with(folder)
        setup = attrs.evolve(plain.repositories[0], url=f"{self.url}/setup", follow=True)
        self.box = attrs.evolve(plain, repositories=(setup, plain.repositories[1]))
        self.lock = make_lock(self.box)
        self.digest = ""

    def serve(self) -> str:
        self.server = makeserver.daemon(self.served)
        return str(self.server.__enter__())

    def cut(self) -> None:
        """The network is gone."""
        if self.server:
            self.server.__exit__(None, None, None)
        self.server = None

    def deliver(self, box: Box | None = None) -> None:
        """Brings the manifest, which stays pinned to the first commit."""
        box = box or self.box
        Mirror.of(box.repositories[0]).ensure(self.pinned)
        self.digest, tar = delivery(self.folder, box, self.lock)
        assert self.guest.run("/usr/lib/kimbox/receive", self.digest, stdin=str(tar)).code == 0

    def push(self, script: str) -> str:
        return makebox.commit(self.served / "setup", {"setup": f"#!/bin/sh\n{script}\n"})

    def boot(self, code: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """A boot with a new root: what was told of following, and last of all."""
        self.guest.new_root()
        self.guest.events()
        assert self.guest.run(PROVISIOND, "--early").code == 0
        assert self.guest.run(PROVISIOND).code == code, self.guest.log()
        told = self.guest.events()
        for event in told:
            jsonschema.validate(event | {"boot": "", "uptime_s": 1}, EVENT)
        (follow,) = [event for event in told if event["event"] == "follow"]
        assert follow.pop("manifest") == self.digest == told[-1]["manifest"]
        assert follow.pop("branch") == "main"
        return follow, told[-1]


@pytest.fixture
def followed(guest: FakeGuest, tmp_path: Path) -> Iterator[Followed]:
    made = Followed(guest, tmp_path)
    yield made
    made.cut()


def about(status: str, newest: str, commit: str, reason: str = "") -> dict[str, str]:
    return {"event": "follow", "status": status, "newest": newest, "commit": commit, "reason": reason}


@needs_namespace
def test_each_boot_takes_the_newest_commit(followed: Followed) -> None:
    """First the pinned one, where nothing has moved; then what the branch has; box.json says what runs."""
    guest = followed.guest
    followed.deliver()
    assert followed.boot()[0] == about("newest", followed.pinned, followed.pinned)
    said = json.loads(guest.path("/etc/kimbox/box.json").read_text())
    assert (said["unpinned"], said["provisioned"]["setup_commit"]) == ([], followed.pinned)
    new = followed.push("echo two at $KIMBOX_COMMIT of $KIMBOX_MANIFEST")
    follow, last = followed.boot()
    assert follow == about("newest", new, new)
    assert last == {"event": "ready", "manifest": followed.digest}
    assert f"two at {new} of {followed.digest}\n" in guest.log()
    said = json.loads(guest.path("/etc/kimbox/box.json").read_text())
    assert (said["unpinned"], said["provisioned"]["setup_commit"]) == (["setup"], new)
    assert (said["manifest"], said["repositories"]["setup"]["commit"]) == (followed.digest, followed.pinned)
    newer = followed.push("echo three")
    assert followed.boot()[0] == about("newest", newer, newer)
    kept = {path.name for path in guest.path("/persistent/kimbox/manifests").iterdir()}
    assert kept == {followed.digest, f"{followed.digest}-{new}", f"{followed.digest}-{newer}"}
    followed.boot()
    kept = {path.name for path in guest.path("/persistent/kimbox/manifests").iterdir()}
    assert kept == {followed.digest, f"{followed.digest}-{newer}"}


@needs_namespace
def test_a_newer_commit_is_described_by_the_tags_of_the_pinned_one(followed: Followed) -> None:
    """The tags of the lock are before the newest commit, too."""
    makebox.git(followed.served / "setup", "tag", "-a", "v1", "-m", "one")
    followed.lock = make_lock(followed.box)
    followed.deliver()
    followed.boot()
    new = followed.push("echo two")
    assert followed.boot()[0] == about("newest", new, new)
    described = followed.guest.run("git", "-C", "/usr/local/src/setup", "describe").stdout
    assert described.strip() == f"v1-1-g{new[:7]}"


@needs_namespace
def test_the_commit_that_is_told_is_kept(followed: Followed) -> None:
    """A power cut right after it is told leaves it for a boot without a network."""
    guest = followed.guest
    followed.deliver()
    newest = followed.push("echo two")
    guest.note_syncs(f"grep -qs {newest} /persistent/kimbox/followed")
    assert followed.boot()[0] == about("newest", newest, newest)
    assert guest.was_synced_before("follow")


@needs_namespace
def test_a_kept_root_runs_only_what_is_new(followed: Followed) -> None:
    """The same commit at the next boot: nothing is run again."""
    followed.deliver()
    followed.boot()
    followed.push("echo x >>/tmp/ran")
    followed.boot()
    followed.guest.new_boot()
    assert followed.guest.run(PROVISIOND).code == 0
    assert followed.guest.path("/tmp/ran").read_text() == "x\n"


@needs_namespace
def test_a_bad_commit_costs_a_boot(followed: Followed) -> None:
    """It fails, and the next boots use the last good one and say why; what is mended is used again."""
    followed.deliver()
    followed.boot()
    good = followed.push("echo good")
    followed.boot()
    bad = followed.push("exit 3")
    follow, last = followed.boot(code=1)
    assert follow == about("newest", bad, bad)
    assert (last["event"], last["kind"]) == ("failed", "setup")
    for _ in range(2):
        follow, last = followed.boot()
        assert follow == about("failed", bad, good, "setup setup: setup ended with status 3")
        assert last == {"event": "ready", "manifest": followed.digest}
    mended = followed.push("echo mended")
    assert followed.boot()[0] == about("newest", mended, mended)


@needs_namespace
def test_what_takes_the_box_down_is_tried_twice(followed: Followed) -> None:
    """Then the boot itself goes back: here to the pinned commit, as none was good yet."""
    bad = followed.push("touch /tmp/hangs\nsleep 100")
    followed.deliver()
    for _ in range(2):
        followed.guest.new_root()
        down = f"rm -f /tmp/hangs; {PROVISIOND} & until [ -e /tmp/hangs ]; do sleep 0.02; done"
        followed.guest.run("sh", "-c", down, pids=True)
    followed.guest.new_root()
    followed.guest.events()
    assert followed.guest.run(PROVISIOND).code == 0
    told = [event for event in followed.guest.events() if event["event"] in ("follow", "ready")]
    assert [(event.get("status"), event.get("commit")) for event in told] == [
        ("newest", bad),
        ("failed", followed.pinned),
        (None, None),
    ]
    assert "went down twice" in told[1]["reason"]


@needs_namespace
def test_without_a_network_it_goes_on_with_what_it_has(followed: Followed) -> None:
    """The last commit that was fetched; of a branch that it never reached, the pinned one; and it says why."""
    followed.cut()
    followed.deliver()
    follow, _ = followed.boot()
    assert (follow["status"], follow["commit"]) == ("unreachable", followed.pinned)
    assert "127.0.0.1" in follow["reason"]
    followed.url = followed.serve()
    setup, code = followed.box.repositories
    moved = attrs.evolve(followed.box, repositories=(attrs.evolve(setup, url=f"{followed.url}/setup"), code))
    followed.deliver(moved)
    new = followed.push("echo two")
    assert followed.boot()[0] == about("newest", new, new)
    followed.cut()
    follow, last = followed.boot()
    assert (follow["status"], follow["newest"], follow["commit"]) == ("unreachable", new, new)
    assert last["event"] == "ready"
    gone = attrs.evolve(setup, url=f"{followed.url}/setup", ref="gone")
    followed.deliver(attrs.evolve(moved, repositories=(gone, code)))
    followed.guest.new_root()
    followed.guest.events()
    assert followed.guest.run(PROVISIOND).code == 0
    (follow,) = [event for event in followed.guest.events() if event["event"] == "follow"]
    assert (follow["branch"], follow["commit"]) == ("gone", followed.pinned)


@needs_namespace
def test_a_sealed_box_believes_its_server_alone(followed: Followed) -> None:
    """Not what root in it has written: without a network it has the pinned commit."""
    newest = followed.push("echo two")
    followed.deliver()
    followed.boot()
    followed.guest.secure()
    known = followed.guest.path("/run/credentials/@system/kimbox.manifests")
    known.write_text(f"{followed.digest}\n")
    assert followed.guest.run("/usr/lib/kimbox/distrust").ok
    follow, last = followed.boot()
    assert (follow, last["event"]) == (about("newest", newest, newest), "sealed")
    followed.cut()
    assert followed.guest.path("/persistent/kimbox/followed").exists()
    assert followed.guest.run("/usr/lib/kimbox/distrust").ok
    follow, last = followed.boot()
    assert (follow["status"], follow["commit"], last["event"]) == ("unreachable", followed.pinned, "sealed")


@needs_namespace
def test_a_box_that_no_longer_follows_is_pinned(followed: Followed) -> None:
    """A manifest without it brings the pinned commit back."""
    followed.deliver()
    followed.push("echo two")
    followed.boot()
    setup, code = followed.box.repositories
    followed.deliver(attrs.evolve(followed.box, repositories=(attrs.evolve(setup, follow=False), code)))
    assert followed.guest.run(PROVISIOND).code == 0
    said = json.loads(followed.guest.path("/etc/kimbox/box.json").read_text())
    assert (said["unpinned"], said["provisioned"]["setup_commit"]) == ([], followed.pinned)
    assert [event for event in followed.guest.events() if event["event"] == "follow"][1:] == []


# --- the host


@pytest.mark.parametrize(
    ("repositories", "message"),
    [
        ("tool: {url: 'https://example.org/x', follow: true}", "can only follow the repository setup"),
        ("setup: {url: 'git@example.org:x', follow: true}", "has no credentials"),
        ("setup: {url: 'file:///x', follow: true}", "has no credentials"),
        (f"setup: {{url: 'https://example.org/x', ref: {'a' * 40}, follow: true}}", "can only follow a branch"),
        ("setup: {url: 'https://example.org/x', ref: refs/tags/v1, follow: true}", "can only follow a branch"),
    ],
)
def test_a_spec_that_cannot_be_followed_is_refused(tmp_path: Path, repositories: str, message: str) -> None:
    """With the reason, at its place."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: tiny\nrepositories:\n  {repositories}\n")
    with pytest.raises(SpecError, match=message) as caught:
        load_box(spec)
    assert [(4, "conflicting-settings")] == [(problem.line, problem.code) for problem in caught.value.problems]


def test_follow_is_in_the_manifest(tmp_path: Path) -> None:
    """By the spec, or by `up --follow`; without it nothing of it is."""
    spec = tmp_path / "kimbox.yaml"
    text = "kimbox: 1\nname: tiny\nrepositories:\n  setup: {url: 'https://example.org/x', ref: dev%s}\n"
    manifests = []
    for more in ("", ", follow: true"):
        spec.write_text(text % more)
        box = load_box(spec)
        lock = Lock("d" * 64, None, {"setup": PIN})
        manifests.append((render_manifest(box, lock)["manifest.env"][0], render_manifest(following(box), lock)))
    assert b"KIMBOX_FOLLOW=''\n" in manifests[0][0]
    assert b"KIMBOX_FOLLOW='dev'\nKIMBOX_FOLLOW_URL='https://example.org/x'\n" in manifests[1][0]
    for _, rendered in manifests:
        assert b"KIMBOX_FOLLOW='dev'\n" in rendered["manifest.env"][0]
        assert b"KIMBOX_EACH_TIME='yes'\n" in rendered["manifest.env"][0]


def test_up_refuses_what_cannot_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a spec that says so is refused."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    with refused(UsageError, "repository-not-found", repository="setup"):
        following(makebox.make_box(tmp_path))
    with refused(UsageError, "conflicting-settings", repository="setup") as failed:
        following(box_with(tmp_path))
    assert "has no credentials" in failed.value.message


def test_status_tells_what_is_followed(world: World) -> None:
    """Branch, commit, and why it is not the newest; nothing of a box that follows none."""
    feignedworld.up(world)
    assert summary_of(world.machine)["follow"] is None
    told = about("failed", "a" * 40, "b" * 40, "it broke")
    told.pop("event")
    makemachine.tell(world.machine, makemachine.event("follow", manifest=world.digest, branch="main", **told))
    assert summary_of(world.machine)["follow"] == {"branch": "main", **told}
