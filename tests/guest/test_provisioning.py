"""Provisioning in a real guest: pinned repositories, steps, probes, failures."""

from __future__ import annotations

import pytest
from conftest import Kimbox

from kimbox import run
from kimbox.lock.lockfile import read_lock

pytestmark = pytest.mark.guest

SPEC = """
repositories:
  setup: {url: ./setup}
  tool: {url: "file://TOOL", ref: stable, path: /opt/tool}
provision:
  - {name: as-root, script: "id -un >/var/tmp/as-root"}
  - {name: as-user, mode: user, script: "id -un >~/as-user; git -C /opt/tool describe >~/version"}
  - {name: every-boot, run: boot, script: "echo x >>/persistent/boots"}
  - {name: breaks, script: "echo about to break; exit 23"}
probes:
  - {description: the tool answers, script: "test -x /opt/tool/run", hint: is it checked out?}
"""


def git(*words: str, folder: object) -> str:
    """Runs git in a folder with an identity. Returns the output."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    return run.run(["git", *identity, "-C", str(folder), *words]).stdout.strip()


def make_project(kimbox: Kimbox) -> str:
    """Makes a setup folder and a git repository with a branch `stable`. Returns the commit of the branch."""
    setup = kimbox.folder / "setup"
    setup.mkdir()
    (setup / "setup").write_text('#!/bin/sh\necho "setting up $KIMBOX_BOX"\necho ran >>/var/tmp/setup-ran\n')
    (setup / "setup").chmod(0o755)
    tool = kimbox.folder / "tool.git"
    tool.mkdir()
    git("init", "-q", folder=tool)
    (tool / "run").write_text("#!/bin/sh\necho one\n")
    (tool / "run").chmod(0o755)
    git("add", "run", folder=tool)
    git("commit", "-qm", "one", folder=tool)
    git("branch", "stable", folder=tool)
    git("tag", "-a", "v1.0", "-m", "one", folder=tool)
    return git("rev-parse", "stable", folder=tool)


def test_a_box_is_provisioned_from_pinned_commits(kimbox: Kimbox) -> None:
    """A failed step is named and the box keeps running. With the step corrected, the box is ready.

    The box keeps its pinned commits. A second provisioning skips the steps that are done.
    """
    commit = make_project(kimbox)
    spec = kimbox.spec("pinned", SPEC.replace("TOOL", str(kimbox.folder / "tool.git")))
    failed = kimbox.json("up", check=False)
    assert failed["exit_code"] == 4
    for words in ("breaks", "exit status 23", "about to break"):
        assert words in failed["message"]
    assert kimbox.json("status")["state"] == "failed"
    assert kimbox.json("status")["failure"] == "provision breaks"

    spec.write_text(spec.read_text().replace("exit 23", "exit 0"))
    streamed = kimbox("provision").stderr
    assert "about to break" in streamed
    assert kimbox.json("status")["state"] == "ready"
    lock = read_lock(kimbox.folder / "kimbox.lock")
    assert lock.repositories["tool"].commit == commit
    assert kimbox.sh("pinned", "git -C /opt/tool rev-parse HEAD; cat ~/version").split() == [commit, "v1.0"]
    assert kimbox.sh("pinned", "git -C /opt/tool remote get-url origin").strip() == f"file://{kimbox.folder}/tool.git"
    assert kimbox.sh("pinned", "cat /var/tmp/as-root ~/as-user") == "root\nvagrant\n"
    assert kimbox.sh("pinned", "cat /var/tmp/setup-ran") == "ran\n"
    assert "setting up pinned" in kimbox("logs").stdout

    move_tool(kimbox)
    kimbox("reload")
    assert kimbox.sh("pinned", "sudo git -C /opt/tool rev-parse HEAD").strip() == commit
    assert kimbox.sh("pinned", "cat /var/tmp/setup-ran") == "ran\n"
    boots = kimbox.sh("pinned", "wc -l </persistent/boots").strip()
    assert boots == "2"

    moved = kimbox.json("lock", "--update", "tool")["moved"]
    assert moved == {"tool": {"old": commit, "new": git("rev-parse", "stable", folder=kimbox.folder / "tool.git")}}
    (kimbox.folder / "setup" / "setup").write_text("#!/bin/sh\necho again >>/var/tmp/setup-ran\n")
    log = kimbox("up").stderr
    assert "the folder ./setup has changed" in log
    assert kimbox.sh("pinned", "/opt/tool/run; cat /var/tmp/setup-ran") == "two\nran\nagain\n"
    kimbox("destroy", "-y")


def move_tool(kimbox: Kimbox) -> None:
    """Adds a commit to the branch of the tool. The lock does not change."""
    tool = kimbox.folder / "tool.git"
    git("checkout", "-q", "stable", folder=tool)
    (tool / "run").write_text("#!/bin/sh\necho two\n")
    git("commit", "-qam", "two", folder=tool)


def test_no_provision_boots_and_changes_nothing(kimbox: Kimbox) -> None:
    """--no-provision leaves the box as in its image. A failed probe is reported with its description and hint."""
    step = "provision: [{name: mark, script: touch /var/tmp/marked}]\n"
    kimbox.spec("bare", step)
    kimbox("up", "--no-provision")
    assert kimbox.sh("bare", "ls /var/tmp/marked 2>&1 || true").startswith("ls: cannot access")
    kimbox("up")
    assert kimbox.sh("bare", "ls /var/tmp/marked") == "/var/tmp/marked\n"

    probe = "probes: [{description: a unicorn, script: 'test -e /unicorn', hint: look up, timeout: 3s}]\n"
    kimbox.spec("bare", step + probe)
    failed = kimbox.json("up", check=False)
    assert failed["exit_code"] == 4
    assert "a unicorn" in failed["message"]
    assert "look up" in failed["message"]
    kimbox("destroy", "-y")
