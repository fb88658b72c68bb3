"""provisioners/mounts: what the script does in a guest, with stand-ins for mount and umount."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakeguest import FakeGuest, can_unshare

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine allows no mount namespace")

MOUNTS = "/usr/lib/kimbox/mounts"

#: Stand-ins that write down how they were called.
TOOLS = {"mount": "[ ! -e /run/broken ] || { echo no device >&2; exit 1; }", "umount": ":"}


@pytest.fixture
def guest(tmp_path: Path) -> FakeGuest:
    """A guest whose host shares two folders."""
    guest = FakeGuest(tmp_path / "guest")
    for name, body in TOOLS.items():
        tool = guest.path(f"/usr/local/sbin/{name}")
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>/run/calls\n{body}\n')
        tool.chmod(0o755)
    folder = guest.path("/run/credentials/@system")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kimbox.mounts").write_text("/home/vagrant/work:rw /srv/data:ro")
    return guest


def failure(guest: FakeGuest) -> list[str]:
    """The mount point and the reason that provisiond reports."""
    file = guest.path("/run/kimbox/mounts.failed")
    return file.read_text().splitlines() if file.exists() else []


def test_start(guest: FakeGuest) -> None:
    """Each folder is mounted at its own place, which is made if it is missing, without set-uid programs and devices."""
    assert guest.run(MOUNTS, "start").code == 0
    assert guest.path("/run/calls").read_text().splitlines() == [
        "mount -t virtiofs -o nosuid,nodev,rw kimbox0 /home/vagrant/work",
        "mount -t virtiofs -o nosuid,nodev,ro kimbox1 /srv/data",
    ]
    assert guest.path("/srv/data").is_dir()
    assert failure(guest) == []


def test_failures_are_reported_until_the_next_start(guest: FakeGuest) -> None:
    """A folder with files is not hidden, a link is not followed, and mount's own words are passed on."""
    place = guest.path("/home/vagrant/work")
    place.mkdir(parents=True)
    (place / ".mine").touch()
    assert guest.run(MOUNTS, "start").code == 1
    assert failure(guest)[0] == "/home/vagrant/work"
    assert "not empty" in failure(guest)[1]
    (place / ".mine").unlink()
    place.rmdir()
    place.symlink_to("/etc")
    guest.run(MOUNTS, "start")
    assert "symbolic link" in failure(guest)[1]
    place.unlink()
    guest.path("/run/broken").touch()
    guest.run(MOUNTS, "start")
    assert "no device" in failure(guest)[1]
    guest.path("/run/broken").unlink()
    assert guest.run(MOUNTS, "start").code == 0
    assert failure(guest) == []


def test_stop_touches_nothing_that_is_not_mounted(guest: FakeGuest) -> None:
    """A second stop succeeds."""
    assert guest.run(MOUNTS, "stop").code == 0
    assert not guest.path("/run/calls").exists()
