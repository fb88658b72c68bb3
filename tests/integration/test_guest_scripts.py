"""The scripts that run inside a guest, under their real paths in a root folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import attrs
import fakeguest
import makebox
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step, steps_of

from kimbox.guest.delivery import write_tar
from kimbox.guest.events import parse_line
from kimbox.lock.lockfile import make_lock
from kimbox.render.manifest import render_manifest
from kimbox.run import run
from kimbox.spec.model import Box, Mode, Probe, Run

guest = fakeguest.guest  # a fixture


# --- the whole way


@needs_namespace
def test_without_a_manifest_provisiond_waits(guest: FakeGuest) -> None:
    """A box that the host has sent nothing says so, and its unit does not fail."""
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert guest.events() == [{"event": "waiting"}]
    assert json.loads(guest.path("/persistent/status.json").read_text())["event"] == "waiting"


@needs_namespace
def test_a_box_is_provisioned_and_says_every_step(guest: FakeGuest, tmp_path: Path) -> None:
    """The repositories, `setup`, the steps and the probes run in order, as whom and where they should."""
    box = box_with(
        tmp_path,
        step("greet", 'echo "I am $USER in $PWD of $KIMBOX_BOX"'),
        step("mine", 'echo "I am $USER in $PWD, ${SHELL}, $HOME"', mode=Mode.USER),
        probes=(Probe("all is well", "true", None, 10),),
        setup='#!/bin/sh\necho "set up at $KIMBOX_COMMIT in $PWD"\n',
    )
    digest, _ = delivery(tmp_path, box)
    assert provision(guest, tmp_path, box) == 0
    events = guest.events()
    assert events[0] == {"event": "provisioning", "manifest": digest}
    assert events[-1] == {"event": "ready", "manifest": digest}
    assert steps_of(events) == [
        ("repository", "setup", "done"),
        ("repository", "code", "done"),
        ("setup", "setup", "done"),
        ("provision", "greet", "done"),
        ("provision", "mine", "done"),
        ("probe", "all is well", "done"),
    ]
    assert [e["n"] for e in events if e.get("status") == "done"] == [1, 2, 3, 4, 5, 6]
    assert {e["of"] for e in events if e["event"] == "step"} == {6}
    commit = make_lock(box).repositories["setup"].commit
    assert f"set up at {commit} in /usr/local/src/setup\n" in guest.log()
    assert "== step 4 of 6: provision greet\nI am root in /root of tiny\n" in guest.log()
    assert "I am vagrant in /home/vagrant, /bin/bash, /home/vagrant\n" in guest.log()
    assert guest.log() == guest.path("/persistent/log/provision.log").read_text()
    assert guest.path("/home/vagrant/src/code/a").read_text() == "one\n"
    assert guest.path("/persistent/kimbox/current").readlink() == Path("manifests") / digest
    assert guest.path("/persistent/kimbox/good").readlink() == Path("manifests") / digest
    assert not guest.path("/persistent/incoming").exists()


@needs_namespace
def test_what_was_done_is_skipped_until_root_is_new(guest: FakeGuest, tmp_path: Path) -> None:
    """The second run skips `once`, a boot brings back `boot`, `always` is always; a new root gets everything again."""
    box = box_with(tmp_path, step("o", "true"), step("b", "true", run=Run.BOOT), step("a", "true", run=Run.ALWAYS))
    everything = [("repository", "setup"), ("repository", "code"), ("setup", "setup")]
    assert provision(guest, tmp_path, box) == 0
    guest.events()

    def statuses() -> dict[str, str]:
        assert guest.run("/usr/lib/kimbox/provisiond").code == 0
        return {name: status for kind, name, status in steps_of(guest.events()) if kind == "provision"}

    assert statuses() == {"o": "skipped", "b": "skipped", "a": "done"}
    guest.new_boot()
    assert statuses() == {"o": "skipped", "b": "done", "a": "done"}
    guest.new_root()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    done = steps_of(guest.events())
    assert {status for _, _, status in done} == {"done"}
    assert [(kind, name) for kind, name, _ in done][:3] == everything


@needs_namespace
def test_a_box_with_nothing_to_do_is_ready_with_few_processes(guest: FakeGuest, tmp_path: Path) -> None:
    """Where all is done and nothing is to be probed, the way to ready starts fewer than ten processes."""
    box = box_with(tmp_path, step("o", "true"))
    assert provision(guest, tmp_path, box) == 0
    guest.events()
    counted = guest.run("sh", "-c", "/usr/lib/kimbox/provisiond; exec sh -c 'sh -c \"echo \\$\\$\"; :'", pids=True)
    assert [e["event"] for e in guest.events()] == ["ready"]
    started_before = 3  # the shells around it and mount
    assert int(counted.stdout) - started_before < 10, counted.stdout


@needs_namespace
def test_a_failing_step_names_itself(guest: FakeGuest, tmp_path: Path) -> None:
    """Name, exit status and reason are told, its last words have reached the log, and nothing after it runs."""
    box = box_with(tmp_path, step("bad", "echo doing\nfalse_program_xyz\necho never"), step("later", "echo later"))
    assert provision(guest, tmp_path, box) == 1
    events = guest.events()
    assert events[-1] == {
        "event": "failed",
        "manifest": delivery(tmp_path, box)[0],
        "kind": "provision",
        "name": "bad",
        "exit": 127,
        "reason": "ended with status 127",
    }
    assert "doing\n" in guest.log()
    assert "false_program_xyz" in guest.log()
    assert "later" not in guest.log()
    assert json.loads(guest.path("/persistent/status.json").read_text())["event"] == "failed"
    assert not guest.path("/persistent/kimbox/good").exists()


@needs_namespace
def test_a_step_over_its_time_is_stopped(guest: FakeGuest, tmp_path: Path) -> None:
    """A hang ends at the step's limit, and the reason says so."""
    assert provision(guest, tmp_path, box_with(tmp_path, step("hang", "sleep 100", timeout_s=1))) == 1
    failed = guest.events()[-1]
    assert (failed["name"], failed["exit"], failed["reason"]) == ("hang", 124, "did not end within 1 s")


@needs_namespace
def test_a_step_that_leaves_a_daemon_does_not_hold_the_box(guest: FakeGuest, tmp_path: Path) -> None:
    """A process left behind with the log open neither hangs provisiond nor loses output."""
    assert provision(guest, tmp_path, box_with(tmp_path, step("d", "sleep 7 &\necho left it"))) == 0
    assert "left it\n" in guest.log()
    assert guest.events()[-1]["event"] == "ready"


@needs_namespace
def test_a_probe_is_tried_until_it_holds(guest: FakeGuest, tmp_path: Path) -> None:
    """A probe that holds a little later is no failure; one that never does tells its hint."""
    late = Probe("it comes", "test -e /tmp/once || { touch /tmp/once; exit 1; }", None, 20)
    assert provision(guest, tmp_path, box_with(tmp_path, probes=(late,))) == 0
    never = Probe('it\'s "there"', "exit 3", "see 'logs'", 1)
    assert provision(guest, tmp_path, box_with(tmp_path, probes=(never,))) == 1
    failed = guest.events()[-1]
    assert (failed["kind"], failed["name"], failed["exit"]) == ("probe", 'it\'s "there"', 3)
    assert failed["reason"] == "did not hold within 1 s, last ended with status 3 (see 'logs')"


@needs_namespace
def test_the_last_try_of_a_probe_has_a_time_limit(guest: FakeGuest, tmp_path: Path) -> None:
    """A pause that took longer than what was left of the probe's time leaves a second, not none and not for ever."""
    slow = guest.path("/usr/local/bin/sleep")
    slow.parent.mkdir(parents=True, exist_ok=True)
    slow.write_text('#!/bin/sh\n[ "$1" != 1 ] || set -- 4\nexec /bin/sleep "$@"\n')
    slow.chmod(0o755)
    late = Probe("it comes", "test -e /tmp/once || { touch /tmp/once; exit 1; }", None, 3)
    assert provision(guest, tmp_path, box_with(tmp_path, probes=(late,))) == 0, guest.log()


@needs_namespace
def test_a_setup_repository_without_setup_is_named(guest: FakeGuest, tmp_path: Path) -> None:
    """A setup that is not executable is said so."""
    assert provision(guest, tmp_path, box_with(tmp_path, setup="echo no shebang, not executable\n")) == 1
    assert guest.events()[-1]["reason"] == "the setup repository has no executable file named setup"


# --- receive


@needs_namespace
def test_receive_changes_nothing_unless_all_is_whole(guest: FakeGuest, tmp_path: Path) -> None:
    """A cut tar, a missing bundle or one with another commit is refused with the reason; the old manifest stays."""
    box = box_with(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    before = guest.path("/persistent/kimbox/current").readlink()
    guest.events()
    makebox.commit(tmp_path / "code", {"a": "two\n"})
    digest, tar = delivery(tmp_path, box)
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        starts = [member.offset for member in archive.getmembers()]
    for cut in (starts[-1], starts[-2] + 700, starts[3]):
        tar.write_bytes(whole[:cut])
        assert guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).code != 0
        assert guest.events()[-1]["reason"] == "what the host sent is not whole"
    manifest = render_manifest(box, make_lock(box))
    write_tar(manifest, [], tar)
    missing = guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar))
    assert "repository code: commit" in missing.stderr
    (tmp_path / "code.bundle").write_bytes((tmp_path / "setup.bundle").read_bytes())
    write_tar(manifest, [tmp_path / "code.bundle"], tar)
    wrong = guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar))
    assert "in place of" in wrong.stderr
    assert guest.path("/persistent/kimbox/current").readlink() == before


@needs_namespace
def test_receive_tells_what_it_has_and_starts_provisiond(guest: FakeGuest, tmp_path: Path) -> None:
    """--have knows the commits that are here; --start restarts the unit without waiting; a stale git lock is no bar."""
    box = box_with(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    commit = make_lock(box).repositories["code"].commit
    have = guest.run("/usr/lib/kimbox/receive", "--have", "code", commit, "setup", "0" * 40, "none", commit)
    assert have.stdout == "code\n"
    new = makebox.commit(tmp_path / "code", {"a": "two\n"})
    guest.path(f"/persistent/git/code.git/refs/kimbox/{new}.lock").touch()
    digest, tar = delivery(tmp_path, box)
    started = guest.run("/usr/lib/kimbox/receive", digest, "--start", stdin=str(tar))
    assert started.code == 0, started.stderr
    assert guest.path("/run/systemctl.log").read_text() == "--no-block restart provisiond.service\n"


@needs_namespace
def test_a_full_or_read_only_persistent_is_told(guest: FakeGuest, tmp_path: Path) -> None:
    """Neither a full nor a read-only /persistent is a riddle."""
    digest, tar = delivery(tmp_path, box_with(tmp_path))
    full = guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar), mount="size=48k")
    assert "no space is left on /persistent" in full.stderr
    assert guest.events()[-1]["reason"] == "no space is left on /persistent"
    assert guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).code == 0
    shutil.rmtree(guest.path("/persistent.first"))
    shutil.copytree(guest.path("/persistent"), guest.path("/persistent.first"), symlinks=True)
    assert guest.run("/usr/lib/kimbox/provisiond", mount="size=100m", remount="ro").code == 1
    assert "read-only" in guest.events()[-1]["reason"]


@needs_namespace
def test_without_ports_events_and_log_are_on_persistent(guest: FakeGuest, tmp_path: Path) -> None:
    """Where the virtualiser has no virtio-serial port, the host can ask later."""
    shutil.rmtree(guest.ports)
    assert provision(guest, tmp_path, box_with(tmp_path, step("s", "echo said"))) == 0
    lines = guest.path("/persistent/log/events.jsonl").read_bytes().splitlines()
    assert [e.name for line in lines if (e := parse_line(line))][-1] == "ready"
    assert "said\n" in guest.path("/persistent/log/provision.log").read_text()


# --- by hand


@needs_namespace
def test_runsetup_by_hand_takes_a_branch_and_the_manifest_takes_it_back(guest: FakeGuest, tmp_path: Path) -> None:
    """`runsetup URL BRANCH` runs another setup at once; the next run with the manifest brings the pinned one back."""
    box = box_with(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    makebox.git(tmp_path / "setup", "checkout", "-q", "-b", "try")
    commit = makebox.commit(tmp_path / "setup", {"setup": "#!/bin/sh\necho another setup\n"})
    done = guest.run("/persistent/runsetup", f"file:///host{tmp_path}/setup", "try")
    assert done.code == 0, done.stderr
    assert "another setup" in done.stdout
    assert commit in guest.path("/var/lib/kimbox/unpinned").read_text()
    again = guest.run("/persistent/runsetup")
    assert again.code == 0
    assert "set up" in again.stdout
    assert not guest.path("/var/lib/kimbox/unpinned").exists()
    if os.getuid() == 0:  # a working copy of another account
        makebox.git(tmp_path, "clone", "-q", "setup", "theirs")
        run(["chown", "-R", "12345", tmp_path / "theirs"])
        assert guest.run("/persistent/runsetup", f"file:///host{tmp_path}/theirs", "try").code == 0
    makebox.git(tmp_path, "clone", "-q", "--depth=1", "--branch=try", f"file://{tmp_path}/setup", "thin")
    makebox.commit(tmp_path / "setup", {"setup": "#!/bin/sh\necho newer\n"})
    makebox.git(tmp_path / "thin", "fetch", "-q", "--depth=1", "origin", "+try:refs/remotes/origin/try")
    makebox.git(tmp_path / "thin", "reset", "-q", "--hard", "origin/try")
    shallow = guest.run("/persistent/runsetup", f"file:///host{tmp_path}/thin", "try")
    assert (shallow.code, "it is a shallow clone" in shallow.stdout) == (1, True)
    gone = guest.run("/persistent/runsetup", f"file:///host{tmp_path}/setup", "nosuch")
    assert (gone.code, "cannot fetch branch nosuch" in gone.stdout) == (1, True)


@needs_namespace
@pytest.mark.parametrize(
    ("argument", "url"),
    [
        ("git.example.org", "https://git.example.org/setup.git"),
        ("git.example.org/group", "https://git.example.org/group/setup.git"),
    ],
)
def test_runsetup_by_hand_knows_where_a_site_keeps_its_setup(
    guest: FakeGuest, tmp_path: Path, argument: str, url: str
) -> None:
    """`runsetup HOST[/ORG]` asks by https for the branch `stable` of setup.git, as the site's server has it."""
    setup = "#!/bin/sh\necho the stable setup\n"
    makebox.make_repository(tmp_path / "setup.git", {"setup": setup})
    makebox.git(tmp_path / "setup.git", "branch", "stable")
    git = guest.path("/usr/local/sbin/git")
    instead = f"url.file:///host{tmp_path}/.insteadOf={url.removesuffix('setup.git')}"
    git.write_text(f'#!/bin/sh\necho "$*" >>/run/git.log\nexec /usr/bin/git -c {instead} "$@"\n')
    git.chmod(0o755)
    done = guest.run("/persistent/runsetup", argument)
    assert (done.code, "the stable setup" in done.stdout) == (0, True), done.stdout + done.stderr
    fetched = [line for line in guest.path("/run/git.log").read_text().splitlines() if " fetch " in line]
    assert [line.split(" -- ")[1] for line in fetched] == [f"{url} +refs/heads/stable:refs/kimbox/byhand"]


@needs_namespace
@pytest.mark.parametrize("arguments", [("--help",), ("-h",)])
def test_runsetup_and_runsecure_help(guest: FakeGuest, arguments: tuple[str, ...]) -> None:
    """Both say what they do; options they do not know are refused."""
    for script in ("/persistent/runsetup", "/persistent/runsecure"):
        assert script.rsplit("/", 1)[1] in guest.run(script, *arguments).stdout
        assert guest.run(script, "--bad").code == 2
    assert guest.run("/persistent/runsetup", "host/org", "--upload-pack=x").code == 2
    assert guest.run("/persistent/runsetup", "ext::sh -c id", "x").code == 1


#: A `secure` that says what it was given, and fails where it is to.
SECURE = """#!/bin/sh
test ! -e /tmp/refuse && read -r line <"$KIMBOX_CREDENTIALS/passwd" &&
echo "closing $KIMBOX_ROLE of $KIMBOX_SITE for $KIMBOX_USERNAME, with $line"
"""


def box_with_a_role(folder: Path) -> Box:
    """A box whose setup repository has a `secure`."""
    makebox.make_repository(folder / "setup", {"setup": "#!/bin/sh\n", "secure": SECURE})
    makebox.make_repository(folder / "code")
    return box_with(folder)


@needs_namespace
def test_credentials_without_their_key(guest: FakeGuest, tmp_path: Path) -> None:
    """A disk that somebody copied does not tell them: the box fails, closed, and says why."""
    assert provision(guest, tmp_path, box_with(tmp_path)) == 0
    guest.secure()
    guest.path("/run/credentials/@system/kimbox.data_key").write_text("another\n")
    guest.events()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 1
    assert "the host has another data key, or none" in guest.events()[-1]["reason"]
    assert not list(guest.path("/run/kimbox/credentials").glob("*"))


@needs_namespace
def test_a_role_is_tried_from_another_commit(guest: FakeGuest, tmp_path: Path) -> None:
    """What was provisioned unpinned makes the role, too, and the box goes on saying that it is unpinned."""
    box = box_with_a_role(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    commit = makebox.commit(tmp_path / "setup", {"secure": f"{SECURE}echo another role\n"})
    digest, tar = delivery(tmp_path, box, attrs.evolve(make_lock(box), unpinned=("setup",)))
    assert guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).ok
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    guest.secure()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    assert "another role" in guest.log().splitlines()
    said = json.loads(guest.path("/etc/kimbox/box.json").read_text())
    assert (said["role"], said["unpinned"], said["provisioned"]["setup_commit"]) == ("worker", ["setup"], commit)


@needs_namespace
def test_runsecure_acts_only_on_a_secured_box(guest: FakeGuest, tmp_path: Path) -> None:
    """Unsecured it does nothing; secured, provisiond runs `secure` after everything else, and its failure counts."""
    box = box_with_a_role(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    assert "was not secured" in guest.run("/persistent/runsecure").stdout
    guest.secure()
    guest.events()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 0
    said = guest.log().splitlines()
    assert "closing worker of example.org for me, with me:hash" in said
    assert said.index("== step 1 of 2: secure harden") < said.index("== step 2 of 2: secure secure")
    told = guest.events()[-1]
    assert (told["event"], told["role"], told["site"]) == ("sealed", "worker", "example.org")
    guest.path("/tmp/refuse").touch()
    guest.events()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 1
    assert guest.events()[-1]["kind"] == "secure"
