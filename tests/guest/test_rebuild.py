"""A box whose spec has one package more gets a new root, and keeps what is its own."""

from __future__ import annotations

import pytest
from conftest import Kimbox

pytestmark = pytest.mark.guest

NAME = "grown"

#: Mount points of the folders `work`, which is writable and in a kept folder, and `data`, which is kept by its name.
SHARED, DATA = "/home/vagrant/work", "/srv/data"

SPEC = f"""
keep: [/home, {DATA}, /opt/none]
mounts:
  - {{location: work, mount_point: {SHARED}, writable: true}}
  - {{location: data, mount_point: {DATA}}}
provision:
  - {{name: mark, script: 'echo x >>/persistent/runs; touch /made'}}
"""

#: What a user leaves in the box. The owner of one folder has no account.
WORK = (
    "echo mine >~/mine; ln -s /etc/nowhere ~/link; sudo mkdir -m 0750 /home/other; sudo chown 1234:1235 /home/other; "
    "sudo touch /lost /persistent/here; sync"
)

#: Prints the files of the user, and which of the others exist.
LOOK = (
    "sudo stat -c '%n %u:%g %a' /home/other; cat ~/mine; readlink ~/link; "
    "ls -d /lost /made /persistent/here 2>/dev/null; wc -l </persistent/runs; hello 2>/dev/null"
)

MINE = ["/home/other 1234:1235 750", "mine", "/etc/nowhere"]


def check_mounts(kimbox: Kimbox, word: str) -> None:
    """Checks that both folders of the host are mounted and live, and that the guest cannot change one of them."""
    (kimbox.folder / "data/given").write_text(word)
    change = f"sudo sh -c 'echo x >{DATA}/given; echo x >{DATA}/new; chmod 700 {DATA}'"
    seen = kimbox.sh(NAME, f"{change}; cat {SHARED}/new {DATA}/given; echo {word} >{SHARED}/taken")
    assert seen == f"of the host{word}"
    assert [path.name for path in (kimbox.folder / "data").iterdir()] == ["given"]
    assert (kimbox.folder / "data/given").read_text() == word
    assert (kimbox.folder / "work/taken").read_text() == f"{word}\n"
    assert all(mount["is_served"] for mount in kimbox.json("status")["mounts"])


def test_a_package_more_is_a_new_root(kimbox: Kimbox) -> None:
    """It has the package and the kept files, and is provisioned anew. The former disk is there, and comes back.

    Folders of the host are no kept files, and are mounted again on each disk.
    """
    for name in ("work", "data"):
        (kimbox.folder / name).mkdir()
    (kimbox.folder / "work/new").write_text("of the host")
    kimbox.spec(NAME, SPEC)
    kimbox("up")
    assert kimbox.json("up", "--rebuild")["before"] == "ready"  # the image is the same: nothing to do
    kimbox.sh(NAME, WORK)
    check_mounts(kimbox, "first")
    before = kimbox.json("status")
    kimbox.spec(NAME, f"image: {{packages: [hello]}}{SPEC}")
    kimbox("lock")
    assert "kimbox up --rebuild" in kimbox("up").stderr
    assert kimbox.json("diff")["installed"]["old"]["added"] == {}
    kimbox("up", "--install")
    assert list(kimbox.json("diff")["installed"]["old"]["added"]) == ["hello"]
    assert kimbox.sh(NAME, "hello; ls -d /lost").splitlines() == ["Hello, world!", "/lost"]
    installed = kimbox.json("status")
    assert ([line.split()[0] for line in installed["installed"]], installed["image"]) == (["hello"], before["image"])
    assert kimbox.json("up", "--rebuild")["state"] == "ready"
    check_mounts(kimbox, "rebuilt")
    status = kimbox.json("status")
    assert (status["image"] != before["image"], status["installed"]) == (True, [])
    assert status["host_key"] == before["host_key"]
    assert status["provenance"]["image"] == status["image"]
    assert kimbox.sh(NAME, LOOK).splitlines() == [*MINE, "/made", "/persistent/here", "2", "Hello, world!"]
    assert not list((kimbox.home / "machines" / NAME).glob("kept*"))
    assert kimbox.json("snapshot", "list")["snapshots"] == ["former"]
    assert before["image"] not in str(kimbox.json("prune", "--dry-run")["unused"])
    assert kimbox.json("snapshot", "restore", "former")["state"] == "halted"
    assert kimbox.json("status")["image"] == before["image"]
    assert kimbox.json("up", "--no-provision")["state"] == "ready"
    check_mounts(kimbox, "former")
    assert kimbox.sh(NAME, f"{LOOK}; true").splitlines() == [
        *MINE,
        "/lost",
        "/made",
        "/persistent/here",
        "1",
        "Hello, world!",
    ]
    kimbox("snapshot", "delete", "former")
    assert kimbox.json("snapshot", "list")["snapshots"] == []
    kimbox("destroy", "-y")
