"""A manifest that fails, or that takes the box down: provisiond goes back to the last good one, and says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fakeguest
import makebox
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step, steps_of

from kimbox.run import Completed
from kimbox.spec.model import Probe

guest = fakeguest.guest  # a fixture

PROVISIOND = "/usr/lib/kimbox/provisiond"
MARKS = ("trying", "retrying", "failed", "fatal")
INTERRUPTED = "the box went down twice while it was provisioned, and this manifest is not tried again by itself"

#: Starts provisiond; as soon as a step has said that it hangs, every process is gone, as in a box that goes down.
GOES_DOWN = f"rm -f /tmp/hangs; {PROVISIOND} & until [ -e /tmp/hangs ]; do sleep 0.02; done"
HANGS = "#!/bin/sh\ntouch /tmp/hangs\nsleep 100\n"


def good_box(guest: FakeGuest, folder: Path) -> str:
    """Brings a box to ready; returns the digest of its manifest."""
    assert provision(guest, folder, box_with(folder)) == 0
    guest.events()
    return delivery(folder, box_with(folder))[0]


def deliver(guest: FakeGuest, folder: Path, setup: str, **more: Any) -> str:
    """Makes another manifest the current one, by another `setup`; returns its digest."""
    if (folder / "setup").exists():
        makebox.commit(folder / "setup", {"setup": setup})
    digest, tar = delivery(folder, box_with(folder, setup=setup, **more))
    received = guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar))
    assert received.code == 0, received.stderr
    return digest


def boot(guest: FakeGuest, *, code: int = 0) -> list[dict[str, Any]]:
    """A boot with a new root; returns what was told, without the steps."""
    guest.new_root()
    assert guest.run(PROVISIOND).code == code
    return [event for event in guest.events() if event["event"] != "step"]


def go_down(guest: FakeGuest) -> list[dict[str, Any]]:
    """A boot with a new root that ends in the middle of `setup`."""
    guest.new_root()
    guest.run("sh", "-c", GOES_DOWN, pids=True)
    return [event for event in guest.events() if event["event"] != "step"]


def marks(guest: FakeGuest) -> dict[str, str]:
    """Every mark that points to a manifest which is there, and to which one."""
    links = {name: guest.path(f"/persistent/kimbox/{name}") for name in (*MARKS, "good", "current")}
    return {name: link.readlink().name for name, link in links.items() if link.is_symlink() and link.exists()}


@needs_namespace
def test_a_setup_that_reboots_the_box_has_not_ended_well(guest: FakeGuest, tmp_path: Path) -> None:
    """With status 0, that is, while the shutdown that it asked for is under way: twice, and it is not tried again."""
    good = good_box(guest, tmp_path)
    state = guest.path("/run/systemd/system/state")
    reboots = "#!/bin/sh\nmkdir -p /run/systemd/system\necho stopping >/run/systemd/system/state\n"
    bad = deliver(guest, tmp_path, reboots)
    for mark in ("trying", "retrying"):
        assert boot(guest, code=1) == [{"event": "provisioning", "manifest": bad}]
        assert marks(guest) == {"current": bad, "good": good, mark: bad}
        shutil.rmtree(state.parent)
    told = boot(guest)
    assert (told[0]["event"], told[0]["reason"]) == ("fallback", INTERRUPTED)
    assert told[-1] == {"event": "ready", "manifest": good, "wanted": bad}


@needs_namespace
def test_a_failed_probe_is_a_failure(guest: FakeGuest, tmp_path: Path) -> None:
    """What `setup` is content with, a probe may not be."""
    good = good_box(guest, tmp_path)
    bad = deliver(guest, tmp_path, "#!/bin/sh\necho other\n", probes=(Probe("it computes", "false", "", 1),))
    assert boot(guest, code=1)[-1]["reason"] == "did not hold within 1 s, last ended with status 1"
    assert marks(guest) == {"current": bad, "good": good, "failed": bad}
    told = boot(guest)
    assert told[0]["reason"] == "probe it computes: did not hold within 1 s, last ended with status 1"
    assert told[-1] == {"event": "ready", "manifest": good, "wanted": bad}


@needs_namespace
def test_after_a_failure_the_next_boot_goes_back(guest: FakeGuest, tmp_path: Path) -> None:
    """The box stays up failed; the next boots use the last good manifest and say why; what is mended is used again."""
    good = good_box(guest, tmp_path)
    bad = deliver(guest, tmp_path, "#!/bin/sh\necho no >&2\nexit 3\n")
    failure = {"kind": "setup", "name": "setup", "exit": 3, "reason": "setup ended with status 3"}
    assert boot(guest, code=1) == [
        {"event": "provisioning", "manifest": bad},
        {"event": "failed", "manifest": bad} | failure,
    ]
    assert marks(guest) == {"current": bad, "good": good, "failed": bad}
    for _ in range(2):
        assert boot(guest) == [
            {
                "event": "fallback",
                "manifest": good,
                "wanted": bad,
                "reason": "setup setup: setup ended with status 3",
            },
            {"event": "provisioning", "manifest": good, "wanted": bad},
            {"event": "ready", "manifest": good, "wanted": bad},
        ]
        assert "set up\n" in guest.log()
        assert marks(guest) == {"current": bad, "good": good, "failed": bad}
    mended = deliver(guest, tmp_path, "#!/bin/sh\necho mended\n")
    assert boot(guest)[-1] == {"event": "ready", "manifest": mended}
    assert marks(guest) == {"current": mended, "good": mended}


@needs_namespace
def test_what_takes_the_box_down_is_tried_twice(guest: FakeGuest, tmp_path: Path) -> None:
    """The first interruption may be a power cut; after the second the start itself goes back, and says why."""
    good = good_box(guest, tmp_path)
    bad = deliver(guest, tmp_path, HANGS)
    for mark in ("trying", "retrying"):
        assert go_down(guest) == [{"event": "provisioning", "manifest": bad}]
        assert marks(guest) == {"current": bad, "good": good, mark: bad}
    told = boot(guest)
    assert told[0] == {"event": "fallback", "manifest": good, "wanted": bad, "reason": INTERRUPTED}
    assert told[-1] == {"event": "ready", "manifest": good, "wanted": bad}
    assert marks(guest) == {"current": bad, "good": good, "fatal": bad}


@needs_namespace
def test_an_interruption_alone_does_no_harm(guest: FakeGuest, tmp_path: Path) -> None:
    """What is interrupted once and then reaches ready is good, and bears no other mark."""
    good_box(guest, tmp_path)
    wanted = deliver(guest, tmp_path, "#!/bin/sh\n[ ! -e /tmp/slow ] || { touch /tmp/hangs; sleep 100; }\n")
    guest.path("/tmp/slow").touch()
    go_down(guest)
    guest.path("/tmp/slow").unlink()
    assert boot(guest)[-1] == {"event": "ready", "manifest": wanted}
    assert marks(guest) == {"current": wanted, "good": wanted}


@needs_namespace
def test_without_a_good_manifest_there_is_no_endless_loop(guest: FakeGuest, tmp_path: Path) -> None:
    """What failed is tried at each boot; what took the box down twice is not, until the host delivers it anew."""
    bad = deliver(guest, tmp_path, "#!/bin/sh\nexit 3\n")
    for _ in range(2):
        assert [e["event"] for e in boot(guest, code=1)] == ["provisioning", "failed"]
    worse = deliver(guest, tmp_path, HANGS)
    assert worse != bad
    go_down(guest)
    go_down(guest)
    failure = {"kind": "provisiond", "name": "interrupted", "exit": 1, "reason": INTERRUPTED}
    for _ in range(2):
        assert boot(guest, code=1) == [{"event": "failed", "manifest": worse} | failure]
    deliver(guest, tmp_path, HANGS + "#\n")
    again = deliver(guest, tmp_path, HANGS)
    assert go_down(guest) == [{"event": "provisioning", "manifest": again}]


@needs_namespace
def test_a_new_delivery_of_what_failed_is_tried_again(guest: FakeGuest, tmp_path: Path) -> None:
    """`kimbox provision` is the user's word that it is worth another try."""
    good_box(guest, tmp_path)
    wanted = deliver(guest, tmp_path, "#!/bin/sh\ntest -e /tmp/mended\n")
    boot(guest, code=1)
    guest.path("/tmp/mended").touch()
    tar = str(tmp_path / "delivery.tar")
    assert guest.run("/usr/lib/kimbox/receive", wanted, stdin=tar).code == 0
    assert boot(guest)[-1] == {"event": "ready", "manifest": wanted}


@needs_namespace
def test_a_kept_root_gets_everything_of_the_good_manifest_again(guest: FakeGuest, tmp_path: Path) -> None:
    """What ran of the failed manifest has undone what the good one did: nothing of that counts as done."""
    assert provision(guest, tmp_path, box_with(tmp_path, step("make", "echo good >/tmp/made"))) == 0
    guest.events()
    bad = box_with(tmp_path, step("make", "echo bad >/tmp/made"), step("breaks", "exit 1"))
    makebox.commit(tmp_path / "setup", {"setup": "#!/bin/sh\necho another\n"})
    assert provision(guest, tmp_path, bad) == 1
    guest.new_boot()
    guest.events()
    assert guest.run(PROVISIOND).code == 0
    done = {(kind, name): status for kind, name, status in steps_of(guest.events())}
    assert {("repository", "setup"): "done", ("setup", "setup"): "done", ("provision", "make"): "done"} == {
        key: status for key, status in done.items() if key != ("repository", "code")
    }
    assert guest.path("/tmp/made").read_text() == "good\n"
    guest.new_boot()
    assert guest.run(PROVISIOND, "--early").code == 0
    assert [e["event"] for e in guest.events()] == ["fallback", "ready"]


@needs_namespace
def test_early_says_nothing_where_there_is_work(guest: FakeGuest, tmp_path: Path) -> None:
    """Then the fallback is told by the run that does the work, once."""
    good_box(guest, tmp_path)
    deliver(guest, tmp_path, "#!/bin/sh\nexit 3\n")
    boot(guest, code=1)
    guest.new_root()
    assert guest.run(PROVISIOND, "--early").code == 0
    assert guest.events() == []
    assert [e["event"] for e in boot(guest)] == ["fallback", "provisioning", "ready"]


@needs_namespace
def test_by_hand_it_is_what_the_host_wants(guest: FakeGuest, tmp_path: Path) -> None:
    """`runsetup` in a box that went back tries the wanted manifest; if that goes well now, it is good."""
    good = good_box(guest, tmp_path)
    wanted = deliver(guest, tmp_path, "#!/bin/sh\ntest -e /tmp/mended\n")
    boot(guest, code=1)
    boot(guest)
    assert guest.run("/persistent/runsetup").code == 1
    assert marks(guest)["good"] == good
    guest.path("/tmp/mended").touch()
    guest.events()
    assert guest.run("/persistent/runsetup").code == 0
    assert guest.events()[-1] == {"event": "ready", "manifest": wanted}
    assert marks(guest) == {"current": wanted, "good": wanted}
    assert boot(guest)[-1] == {"event": "ready", "manifest": wanted}


@needs_namespace
def test_setup_has_the_time_that_the_spec_gives_it(guest: FakeGuest, tmp_path: Path) -> None:
    """A `setup` that hangs ends at its own limit."""
    deliver(guest, tmp_path, "#!/bin/sh\nsleep 100\n", timeout_s=1)
    assert boot(guest, code=1)[-1]["reason"] == "setup did not end within 1 s"


def full(guest: FakeGuest, then: str) -> Completed:
    """Runs something in the guest with a small /persistent that somebody else has filled up."""
    shutil.rmtree(guest.path("/persistent.first"))
    shutil.copytree(guest.path("/persistent"), guest.path("/persistent.first"), symlinks=True)
    fill = "dd if=/dev/zero of=/persistent/junk bs=4k 2>/dev/null"
    keep = "cp -a /persistent/kimbox /tmp/after; ls -A /persistent >/tmp/listed"
    return guest.run("sh", "-c", f"{fill}; {then}; code=$?; {keep}; exit $code", mount="size=4m")


@needs_namespace
def test_a_full_persistent_does_not_keep_the_box_from_ready(guest: FakeGuest, tmp_path: Path) -> None:
    """A try on a full /persistent can be marked; what is ours there makes room; the good manifest needs none."""
    good = good_box(guest, tmp_path)
    bad = deliver(guest, tmp_path, "#!/bin/sh\nexit 3\n")
    guest.path("/persistent/incoming").mkdir()
    guest.path("/persistent/incoming/half").write_text("x")
    guest.path("/persistent/log/provision.log.1").write_text("old\n")
    guest.new_root()
    assert full(guest, PROVISIOND).code == 1
    assert guest.path("/tmp/after/failed").readlink().name == bad
    assert "incoming" not in guest.path("/tmp/listed").read_text().split()
    boot(guest, code=1)
    guest.new_root()
    shutil.rmtree(guest.path("/tmp/after"))
    assert full(guest, PROVISIOND).code == 0, guest.log()
    assert guest.events()[-1] == {"event": "ready", "manifest": good, "wanted": bad}


@needs_namespace
def test_what_fills_persistent_is_told_at_the_next_boot(guest: FakeGuest, tmp_path: Path) -> None:
    """Mark and reason need no room that is not theirs already."""
    good = good_box(guest, tmp_path)
    bad = deliver(guest, tmp_path, "#!/bin/sh\ncat /dev/zero >/persistent/more\nexit 28\n")
    new_root = "rm -rf /var/lib/kimbox /run/kimbox /persistent/junk"
    assert full(guest, f"{new_root}; {PROVISIOND}; {new_root}; {PROVISIOND}").code == 0
    told = [event for event in guest.events() if event["event"] != "step"]
    assert [event["event"] for event in told] == ["provisioning", "failed", "fallback", "provisioning", "ready"]
    assert told[2]["reason"] == "setup setup: setup ended with status 28"
    assert (told[4]["manifest"], told[4]["wanted"]) == (good, bad)


@needs_namespace
def test_room_is_made_of_what_nobody_needs(guest: FakeGuest) -> None:
    """Of what was fetched, that stays from which the last good manifest installs."""
    kept = ["cache/apt/archives/good.deb", "cache/wheels/a/good.whl", "kimbox/current", "git/setup.git/HEAD"]
    gone = ["incoming/x", "log/provision.log.1", "cache/apt/archives/partial/x", "cache/pip/http/x"]
    late = ["cache/apt/archives/new.deb", "cache/wheels/b/new.whl"]
    for name in (*kept, *gone, "cache/ready"):
        guest.path(f"/persistent/{name}").parent.mkdir(parents=True, exist_ok=True)
        guest.path(f"/persistent/{name}").write_text("x")
    (guest.path("/persistent/cache/wheels/b")).mkdir()
    assert guest.run("sh", "-c", "until touch /tmp/t; [ /tmp/t -nt /persistent/cache/ready ]; do :; done").code == 0
    for name in late:
        guest.path(f"/persistent/{name}").write_text("x")
    assert guest.run("/usr/lib/kimbox/make-room").code == 0
    left = [name for name in (*kept, *gone, *late) if guest.path(f"/persistent/{name}").exists()]
    assert left == kept


@needs_namespace
def test_in_maintain_mode_nothing_runs(guest: FakeGuest, tmp_path: Path) -> None:
    """What ran then would become part of the base; so would what was marked."""
    good_box(guest, tmp_path)
    deliver(guest, tmp_path, HANGS)
    guest.new_root()
    guest.path("/run/kimbox").mkdir()
    guest.path("/run/kimbox/mode").write_text("maintain\n")
    before = marks(guest)
    assert guest.run(PROVISIOND, "--early").code == 0
    assert guest.events() == [{"event": "ready", "manifest": "", "mode": "maintain"}]
    assert marks(guest) == before
    assert not guest.path("/var/lib/kimbox").exists()


@needs_namespace
def test_what_ran_is_written_down(guest: FakeGuest, tmp_path: Path) -> None:
    """Each step with time, boot, mode, digest, status and seconds; what was skipped did not run; it is bounded."""
    history = guest.path("/persistent/log/history")
    made = step("make", "true")
    assert provision(guest, tmp_path, box_with(tmp_path, made, step("breaks", "exit 7"))) == 1
    rows = [line.split("\t") for line in history.read_text().splitlines()]
    assert [(row[3], row[4], row[6]) for row in rows] == [
        ("repository", "setup", "0"),
        ("repository", "code", "0"),
        ("setup", "setup", "0"),
        ("provision", "make", "0"),
        ("provision", "breaks", "7"),
    ]
    assert {(len(row), len(row[1]), row[2]) for row in rows} == {(8, 36, "keep")}
    assert len(rows[1][5]) == 40
    assert all(1.7e9 < int(row[0]) < 1e11 and int(row[7]) < 60 for row in rows)
    history.write_text("x" * 300_000)
    assert guest.run(PROVISIOND).code == 1
    assert history.with_name("history.1").stat().st_size == 300_000
    assert len(history.read_text().splitlines()) == 1


@needs_namespace
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_for_another_manifest_means_nothing(guest: FakeGuest, tmp_path: Path, mark: str) -> None:
    """Left over by an interrupted delivery, or pointing nowhere."""
    good_box(guest, tmp_path)
    wanted = deliver(guest, tmp_path, "#!/bin/sh\ntrue\n")
    guest.path(f"/persistent/kimbox/{mark}").symlink_to("manifests/" + "0" * 64)
    assert boot(guest)[-1] == {"event": "ready", "manifest": wanted}


@needs_namespace
def test_ready_is_told_only_when_the_disk_knows(guest: FakeGuest, tmp_path: Path) -> None:
    """A power cut right after the word must not turn what was ready into a try that was interrupted."""
    sync = guest.path("/usr/local/sbin/sync")
    sync.write_text(
        "#!/bin/sh\n[ ! -e /persistent/kimbox/good ] ||\n"
        "\t{ echo good; cat /dev/virtio-ports/org.kimbox.0; } >>/tmp/synced\n"
    )
    sync.chmod(0o755)
    digest = good_box(guest, tmp_path)
    synced = guest.path("/tmp/synced").read_text()
    assert synced.startswith("good\n")
    assert '"event":"ready"' not in synced
    assert marks(guest)["good"] == digest
