"""provisioners/scratch: what the script does in a guest, with stand-ins for what needs a real disk."""

from __future__ import annotations

from pathlib import Path

import makebox
import pytest
from fakeguest import FakeGuest, can_unshare
from test_guest_scripts import provision, step

from kimbox.spec.model import Mode, Run

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine allows no mount namespace")

SCRATCH = "/usr/lib/kimbox/scratch"
FAILED = "/run/kimbox/scratch.failed"

#: Stand-ins that write down how they were called; mkfs.ext4 and mount make what the real ones would.
TOOLS = {
    "mkfs.ext4": ":",
    "mount": 'for last; do :; done; mkdir -p "$last/lost+found"',
    "umount": '[ ! -e /run/busy ] || [ "$1" = -l ]',
    "mountpoint": "[ -e /run/mounted ]",
    "blkdiscard": ":",
    "sleep": ":",
}


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """A guest whose host asks for scratch space at /mnt/scratch; its second disk is for that."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    guest = FakeGuest(tmp_path / "guest")
    for name, body in TOOLS.items():
        tool = guest.path(f"/usr/local/sbin/{name}")
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>/run/calls\n{body}\n')
        tool.chmod(0o755)
    ask(guest, "/mnt/scratch")
    for disk, serial in {"vda": "", "vdb": "kimbox-scratch"}.items():
        folder = guest.path(f"/sys/block/{disk}")
        folder.mkdir(parents=True)
        (folder / "serial").write_text(serial)  # as the kernel has it: without a line break
    return guest


def ask(guest: FakeGuest, mount: str) -> None:
    """What the host says."""
    folder = guest.path("/run/credentials/@system")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kimbox.scratch").write_text(mount)


def calls(guest: FakeGuest) -> list[list[str]]:
    """How the stand-ins were called since the last look."""
    file = guest.path("/run/calls")
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line.split() for line in lines if not line.startswith("mountpoint ")]


def test_start_makes_it_and_stop_takes_it_away(guest: FakeGuest) -> None:
    """The disk with the serial number, and no other; 1777; TMPDIR named; afterwards nothing is left of it."""
    made = guest.run(SCRATCH, "start")
    assert (0, "") == (made.code, made.stderr)
    mkfs, mount = calls(guest)
    assert ("mkfs.ext4", "/dev/vdb") == (mkfs[0], mkfs[-1])
    assert ["mount", "/dev/vdb", "/mnt/scratch"] == [mount[0], *mount[-2:]]
    assert {"nosuid", "nodev"} <= set(mount[mount.index("-o") + 1].split(","))
    place = guest.path("/mnt/scratch")
    assert 0o1777 == place.stat().st_mode & 0o7777
    assert [] == list(place.iterdir())
    assert "TMPDIR=/mnt/scratch\n" == guest.path("/run/kimbox/environment").read_text()
    assert 0 == guest.run(SCRATCH, "stop").code
    assert [["umount", "/mnt/scratch"], ["blkdiscard", "/dev/vdb"]] == calls(guest)
    assert not place.exists()
    assert "" == guest.path("/run/kimbox/environment").read_text()


def test_a_folder_that_was_there_stays(guest: FakeGuest) -> None:
    """Only what start has made is removed by stop."""
    guest.path("/mnt/scratch").mkdir(parents=True)
    assert 0 == guest.run(SCRATCH, "start").code
    assert 0 == guest.run(SCRATCH, "stop").code
    assert guest.path("/mnt/scratch").is_dir()


def test_where_a_program_works_in_it_its_files_go(guest: FakeGuest) -> None:
    """The disk cannot be dropped as a whole then. Where systemd has unmounted it, what is in the folder is not ours."""
    guest.path("/run/busy").touch()
    guest.path("/run/mounted").touch()
    for mounted in (True, False):
        assert 0 == guest.run(SCRATCH, "start").code
        for name in ("mnt/scratch/folder/file", "mnt/scratch/.hidden"):
            guest.path(name).parent.mkdir(exist_ok=True)
            guest.path(name).touch()
        calls(guest)
        guest.run(SCRATCH, "stop")
        last = ["umount", "-l", "/mnt/scratch"] if mounted else ["blkdiscard", "/dev/vdb"]
        assert [["umount", "/mnt/scratch"], last] == calls(guest)
        assert guest.path("/mnt/scratch/.hidden").exists() is not mounted
        guest.path("/run/mounted").unlink(missing_ok=True)


def hide(guest: FakeGuest) -> None:
    guest.path("/mnt/scratch").mkdir(parents=True)
    guest.path("/mnt/scratch/.hidden").touch()


def put_file(guest: FakeGuest) -> None:
    guest.path("/mnt").mkdir()
    guest.path("/mnt/scratch").touch()


def put_link(guest: FakeGuest) -> None:
    guest.path("/mnt").mkdir()
    guest.path("/mnt/scratch").symlink_to("/tmp")


def put_file_above(guest: FakeGuest) -> None:
    guest.path("/mnt").touch()


def take_disk(guest: FakeGuest) -> None:
    guest.path("/sys/block/vdb/serial").write_text("kimbox-scratch-2")


def break_mkfs(guest: FakeGuest) -> None:
    guest.path("/usr/local/sbin/mkfs.ext4").write_text("#!/bin/sh\necho no room >&2; exit 1\n")


def break_mount(guest: FakeGuest) -> None:
    guest.path("/usr/local/sbin/mount").write_text("#!/bin/sh\necho wrong fs type >&2; exit 32\n")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (hide, "/mnt/scratch is not empty: scratch space would hide what is in it"),
        (put_file, "/mnt/scratch is a file: scratch space needs a folder of its own"),
        (put_link, "/mnt/scratch is a symbolic link: scratch space needs a folder of its own"),
        (put_file_above, "/mnt/scratch cannot be made: "),
        (take_disk, "the box has no disk for scratch space: none has the serial number kimbox-scratch"),
        (break_mkfs, "/dev/vdb cannot be given a file system: no room"),
        (break_mount, "/dev/vdb cannot be mounted on /mnt/scratch: wrong fs type"),
    ],
)
def test_what_is_in_the_way_is_told(guest: FakeGuest, tmp_path: Path, spoil: object, reason: str) -> None:
    """TMPDIR is not set; provisiond says so as soon as sshd answers, in place of ready, and runs nothing."""
    box = makebox.make_box(tmp_path, provision=(step("tell", "echo ran"),))
    assert 0 == provision(guest, tmp_path, box)
    guest.new_boot()
    guest.events()
    assert callable(spoil)
    spoil(guest)
    assert 1 == guest.run(SCRATCH, "start").code
    assert not guest.path("/run/kimbox/environment").exists()
    guest.run("/usr/lib/kimbox/provisiond", "--early")
    (told,) = guest.events()
    assert ("failed", "scratch", "/mnt/scratch", 1) == (told["event"], told["kind"], told["name"], told["exit"])
    assert told["reason"].startswith(reason)
    assert told["manifest"] == guest.path("/persistent/kimbox/current").readlink().name


def test_once_nothing_is_in_the_way_provisiond_goes_on(guest: FakeGuest, tmp_path: Path) -> None:
    """It has the unit tried again; while that fails it runs nothing and says why, each time it is asked."""
    systemctl = guest.path("/usr/local/sbin/systemctl")
    systemctl.write_text(f"#!/bin/sh\n[ \"$*\" = 'restart kimbox-scratch.service' ] && exec {SCRATCH} start\n")
    hide(guest)
    assert 1 == guest.run(SCRATCH, "start").code
    ran = [step("tell", 'echo "ran with $TMPDIR"')]
    ran.append(step("user", 'echo "ran with $TMPDIR"', mode=Mode.USER, run=Run.ALWAYS))
    box = makebox.make_box(tmp_path, provision=tuple(ran))
    assert 0 == provision(guest, tmp_path, box)
    assert ["failed"] == [event["event"] for event in guest.events()]
    assert "ran" not in guest.log()
    guest.path("/mnt/scratch/.hidden").unlink()
    assert 0 == guest.run("/usr/lib/kimbox/provisiond").code
    assert "ready" == guest.events()[-1]["event"]
    assert 2 == guest.log().count("ran with /mnt/scratch\n")
    assert not guest.path(FAILED).exists()


def test_steps_of_a_box_without_it_have_no_tmpdir(guest: FakeGuest, tmp_path: Path) -> None:
    """Not even that of whoever runs runsetup by hand."""
    box = makebox.make_box(tmp_path, provision=(step("tell", 'echo "with ${TMPDIR-none}"'),))
    guest.path("/run/kimbox").mkdir()
    guest.path("/run/kimbox/environment").touch()
    assert 0 == provision(guest, tmp_path, box)
    assert "with none\n" in guest.log()
    guest.new_root()
    by_hand = guest.run("env", "TMPDIR=/root", "/persistent/runsetup")
    assert "with none\n" in by_hand.stdout


@pytest.mark.parametrize("mount", ["", "relative", "--help"])
def test_it_acts_on_what_the_host_says_alone(guest: FakeGuest, mount: str) -> None:
    """No mount point, or none that is one: nothing is touched."""
    ask(guest, mount)
    for verb in ("start", "stop", "other"):
        assert guest.run(SCRATCH, verb).code in (1, 2)
    assert [] == calls(guest)
    assert not guest.path(FAILED).exists()
