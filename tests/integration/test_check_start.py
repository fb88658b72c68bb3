"""`check-start` and provisiond: a box that lacks what `ready` promises is failed, and says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakeguest import FakeGuest, needs_namespace

pytestmark = needs_namespace

SCRIPT = "/usr/lib/kimbox/check-start"
FAILED = "/run/kimbox/start.failed"

#: The tables of a sound box, in a folder of the test in place of the kernel's and of /etc.
TABLES = {
    "proc/mounts": "/dev/dm-2 / ext4 rw 0 0\n/dev/dm-0 /persistent ext4 rw 0 0\n/dev/vda1 /boot ext4 rw 0 0\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/dm-1 partition 262140 0 -2\n",
    "etc/fstab": "/dev/root / ext4 noatime 0 0\n/dev/mapper/vg-swap none swap sw,noauto 0 0\n",
    "cgroup/system.slice/dbus.service/cgroup.procs": "17\n",
    "cgroup/system.slice/systemd-logind.service/cgroup.procs": "18\n19\n",
}


@pytest.fixture
def guest(tmp_path: Path) -> FakeGuest:
    """A box whose start went well."""
    guest = FakeGuest(tmp_path / "guest")
    script = guest.path(SCRIPT)
    text = script.read_text().replace("PATH=", "PATH=/usr/local/sbin:")
    for real, own in (("/proc/", "proc"), ("/etc/", "etc"), ("/sys/fs/cgroup/", "cgroup")):
        text = text.replace(real, f"/run/tables/{own}/")
    script.write_text(text)
    for name, content in TABLES.items():
        table = guest.path(f"/run/tables/{name}")
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(content)
    return guest


def test_a_sound_start_lacks_nothing(guest: FakeGuest) -> None:
    """Nothing is noted, and what an earlier look has noted is gone."""
    guest.path("/run/kimbox").mkdir()
    guest.path(FAILED).write_text("/boot\nit was not mounted\n")
    assert (0, "") == (lambda done: (done.code, done.stderr))(guest.run(SCRIPT))
    assert not guest.path(FAILED).exists()


@pytest.mark.parametrize(
    ("name", "table", "content"),
    [
        ("/boot", "proc/mounts", "/dev/dm-0 /persistent ext4 rw 0 0\n/dev/vda1 /boot/other ext4 rw 0 0\n"),
        ("/persistent", "proc/mounts", "/dev/vda1 /boot ext4 rw 0 0\n/persistent / ext4 rw 0 0\n"),
        ("swap", "proc/swaps", "Filename Type Size Used Priority\n"),
        ("dbus.service", "cgroup/system.slice/dbus.service/cgroup.procs", ""),
        ("systemd-logind.service", "cgroup/system.slice/systemd-logind.service/cgroup.procs", None),
    ],
)
def test_what_is_missing_is_named_and_the_box_is_not_ready(
    guest: FakeGuest, name: str, table: str, content: str | None
) -> None:
    """The host learns the name and the reason; once it is there, the next look finds it."""
    broken = guest.path(f"/run/tables/{table}")
    broken.unlink() if content is None else broken.write_text(content)
    done = guest.run(SCRIPT)
    assert 1 == done.code
    noted, reason = guest.path(FAILED).read_text().splitlines()
    assert name == noted
    assert reason in done.stderr
    guest.path("/run/kimbox/mode").write_text("maintain\n")
    guest.run("/usr/lib/kimbox/provisiond", "--early")
    failed = {"event": "failed", "manifest": "", "kind": "start", "name": name, "exit": 1, "reason": reason}
    assert [failed] == guest.events()
    broken.parent.mkdir(exist_ok=True)
    broken.write_text(TABLES[table])
    guest.run("/usr/lib/kimbox/provisiond")
    assert [{"event": "ready", "manifest": "", "mode": "maintain"}] == guest.events()


def test_keys_that_could_not_be_made_are_missing(guest: FakeGuest) -> None:
    """The box is not ready; when the host asks again, they are tried once more."""
    guest.path("/run/kimbox").mkdir()
    guest.path("/run/kimbox/identity.failed").write_text("munge\nmungekey failed\n")
    maker = guest.path("/usr/lib/kimbox/identity")
    maker.write_text("#!/bin/sh\nrm /run/kimbox/identity.failed\n")
    maker.chmod(0o755)
    assert 1 == guest.run(SCRIPT).code
    assert "munge\nmungekey failed\n" == guest.path(FAILED).read_text()
    assert 0 == guest.run(SCRIPT, "again").code
    assert not guest.path(FAILED).exists()


def test_a_sealed_box_has_no_swap_and_a_masked_unit_is_not_missed(guest: FakeGuest) -> None:
    """Neither is a fault."""
    guest.path("/run/kimbox").mkdir()
    guest.path("/run/kimbox/closed").touch()
    guest.path("/run/tables/proc/swaps").write_text("Filename Type Size Used Priority\n")
    guest.path("/run/tables/cgroup/system.slice/dbus.service/cgroup.procs").unlink()
    masked = guest.path("/run/tables/etc/systemd/system/dbus.service")
    masked.parent.mkdir(parents=True)
    masked.symlink_to("/dev/null")
    assert 0 == guest.run(SCRIPT).code


def test_the_answer_of_the_dhcp_server_is_waited_for(guest: FakeGuest) -> None:
    """check-start looks again and again until the client has ended: here, during the third pause."""
    guest.path("/run/kimbox").mkdir()
    guest.path("/run/kimbox/asking").touch()
    pause = guest.path("/usr/local/sbin/sleep")
    pause.write_text('#!/bin/sh\necho "$1" >>/run/pauses\n[ "$(wc -l </run/pauses)" -lt 3 ] || rm /run/kimbox/asking\n')
    pause.chmod(0o755)
    assert 0 == guest.run(SCRIPT).code
    assert ["0.1"] * 3 == guest.path("/run/pauses").read_text().split()
