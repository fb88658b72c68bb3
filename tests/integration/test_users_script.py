"""Accounts of people, in the guest's own scripts. Programs that change accounts are doubles with a file of names."""

from __future__ import annotations

from pathlib import Path

import attrs
import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, needs_namespace, provision, step, steps_of

from kimbox.render.users import user_file
from kimbox.run import Completed
from kimbox.spec.model import Box, User

pytestmark = needs_namespace

guest = fakeguest.guest  # a fixture

ADA = User("ada", ("ssh-ed25519 AAAA",), sudo=True, groups=("dialout",))
BOB = User("bob")

#: Doubles: they keep names in /tmp/passwd and write their calls to /tmp/calls.
DOUBLES = {
    "getent": '#!/bin/sh\ngrep -qx "$2" /tmp/passwd\n',
    "useradd": '#!/bin/sh\necho "useradd $*" >>/tmp/calls\nfor name; do :; done\necho "$name" >>/tmp/passwd\n'
    'mkdir -p "/home/$name"\n',
    "usermod": '#!/bin/sh\necho "usermod $*" >>/tmp/calls\n[ "$2" != nogroup ]\n',
    "userdel": '#!/bin/sh\necho "userdel $*" >>/tmp/calls\nfor name; do :; done\nsed -i "/^$name\\$/d" /tmp/passwd\n',
    "pkill": '#!/bin/sh\necho "pkill $*" >>/tmp/calls\n',
    "id": "#!/bin/sh\necho 0\n",
}


@pytest.fixture
def box(guest: FakeGuest, tmp_path: Path) -> Box:
    """A box with two accounts and a step that finds the first one."""
    guest.path("/etc/sudoers.d").unlink(missing_ok=True)
    guest.path("/etc/sudoers.d").mkdir()
    (guest.path("/tmp/passwd")).write_text("vagrant\nmail\n")
    for name, text in DOUBLES.items():
        guest.path(f"/usr/local/sbin/{name}").write_text(text)
        guest.path(f"/usr/local/sbin/{name}").chmod(0o755)
    made = box_with(tmp_path, step("look", "test -d /home/ada"))
    return attrs.evolve(made, users=(ADA, BOB))


def names(guest: FakeGuest) -> list[str]:
    """The accounts."""
    return guest.path("/tmp/passwd").read_text().split()


def calls(guest: FakeGuest) -> list[str]:
    """What was called since the last call of this function."""
    path = guest.path("/tmp/calls")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def users(guest: FakeGuest, *words: str, user: User | None = None, work: Path = Path()) -> Completed:
    """Runs `users` as the host does over ssh."""
    if user is None:
        return guest.run("/usr/lib/kimbox/users", *words)
    (work / "user").write_bytes(user_file(user))
    return guest.run("/usr/lib/kimbox/users", *words, stdin=str(work / "user"))


def test_accounts_of_a_spec(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """They are made before the steps, on every new root, and once; keys, sudo and groups are those of the spec."""
    assert 0 == provision(guest, tmp_path, box), guest.log()
    assert ("users", "users", "done") == steps_of(guest.events())[0]
    assert ["vagrant", "mail", "ada", "bob"] == names(guest)
    assert "usermod --groups dialout ada" in calls(guest)
    assert "ada ALL=(ALL) NOPASSWD: ALL\n" == guest.path("/etc/sudoers.d/kimbox-ada").read_text()
    assert not guest.path("/etc/sudoers.d/kimbox-bob").exists()
    keys = guest.path("/var/lib/kimbox/user-keys")
    assert "ssh-ed25519 AAAA\n" == (keys / "ada").read_text()
    assert "/run/kimbox/authorized_keys/vagrant" == str((keys / "bob").readlink())
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, digest="a" * 64))
    assert [] == calls(guest)
    guest.new_root()
    guest.path("/tmp/passwd").write_text("vagrant\n")
    assert 0 == guest.run("/usr/lib/kimbox/provisiond").code
    assert ["vagrant", "ada", "bob"] == names(guest)


def test_one_that_is_removed_is_gone(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """With its processes, keys and rights, also if the spec then has no accounts, and nothing else to do."""
    assert 0 == provision(guest, tmp_path, box)
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, users=(attrs.evolve(BOB, sudo=True),)))
    assert ["vagrant", "mail", "bob"] == names(guest)
    assert ["kimbox-bob"] == [path.name for path in guest.path("/etc/sudoers.d").iterdir()]
    assert ["bob"] == [path.name for path in guest.path("/var/lib/kimbox/user-keys").iterdir()]
    assert {"pkill -KILL -u ada", "userdel --force ada"} <= set(calls(guest))
    assert guest.path("/home/ada").is_dir()
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, users=(), provision=(), repositories=()))
    assert ["vagrant", "mail"] == names(guest)
    assert not guest.path("/var/lib/kimbox/users").exists()


def test_an_account_of_the_system_is_not_taken_over(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """Provisioning fails with the name, and changes nothing of it."""
    assert 0 != provision(guest, tmp_path, attrs.evolve(box, users=(User("mail"),)))
    failed = [event for event in guest.events() if event["event"] == "failed"][-1]
    assert ("users", True) == (failed["kind"], "the account mail exists" in failed["reason"])
    assert [] == calls(guest)


def test_a_group_that_is_missing(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """It is named. After the correction the account is completed."""
    assert 0 != provision(guest, tmp_path, attrs.evolve(box, users=(User("eve", groups=("nogroup",)),)))
    assert "nogroup" in [event for event in guest.events() if event["event"] == "failed"][-1]["reason"]
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, users=(User("eve"),), provision=()))
    assert "eve" in names(guest)


def test_accounts_that_are_added_by_hand(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """They are listed, stay at a provisioning, come to a root that was put back, and can be removed."""
    assert 0 == provision(guest, tmp_path, box)
    added = users(guest, "add", "eve", user=User("eve", ("ssh-ed25519 BBBB",), sudo=True), work=tmp_path)
    assert added.ok, added.stderr
    listed = users(guest, "list").stdout.splitlines()
    assert ["ada yes dialout manifest", "bob no - manifest", "eve yes - added"] == listed
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, digest="a" * 64))
    assert "eve" in names(guest)
    guest.path("/tmp/passwd").write_text("vagrant\nada\nbob\n")
    guest.path("/var/lib/kimbox/users/eve").unlink()  # a root that was kept before
    guest.new_boot()
    assert 0 == guest.run("/usr/lib/kimbox/provisiond", "--early").code
    assert "eve" in names(guest)
    for name in ("ada", "nobody-knows"):
        assert not users(guest, "remove", name).ok
    assert users(guest, "remove", "eve").ok
    assert "eve" not in names(guest)
    assert "eve" not in users(guest, "list").stdout


@pytest.mark.parametrize("name", ["../x", "Ada", "-x", "a b", "", "x" * 33])
def test_names_that_are_refused(guest: FakeGuest, tmp_path: Path, box: Box, name: str) -> None:
    """No name leads out of the folders, and none is an option."""
    assert not users(guest, "add", name, user=User("x"), work=tmp_path).ok
    assert [] == calls(guest)


def test_a_sealed_box_has_none(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """Neither those of the manifest nor those on /persistent, which programs in the box can write."""
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, users=(), provision=()))
    guest.secure()
    folder = guest.path("/persistent/kimbox/users")
    folder.mkdir()
    (folder / "eve").write_bytes(user_file(User("eve", sudo=True)))
    guest.new_root()
    guest.run("/usr/lib/kimbox/provisiond")
    assert ["vagrant", "mail"] == names(guest)
    assert not users(guest, "sync", "/persistent/kimbox/users").ok
