"""Scratch space and folders of the host in a real guest: mounted at every start, and back after suspend.

Scratch space is named by TMPDIR, empty in each run, and kept by suspend. Folders are live in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from conftest import Kimbox, state_of, until

from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

BOX = "scratched"

#: Size and content of a file that the tests write to the scratch space.
FILE_BYTES = 16 << 20
WORDS = b"temporary content\n"

#: Mount points of the folders `work`, which is writable, and `data`.
WORK, DATA = "/home/vagrant/work", "/srv/data"

SPEC = f"""\
scratch: {{size: 1GiB}}
mounts:
  - {{location: work, mount_point: {WORK}, writable: true}}
  - {{location: data, mount_point: {DATA}}}
provision:
  - {{name: as-root, run: always, script: 'echo "$TMPDIR" >/run/root-tmpdir'}}
  - {{name: as-user, run: always, mode: user, script: 'echo "$TMPDIR" >~/user-tmpdir; cp {DATA}/given {WORK}/taken'}}
"""


@pytest.fixture(scope="module")
def scratched(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """A box with scratch space and two folders of the host. It does not start without one of them."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(BOX))
    kimbox.spec(BOX, SPEC)
    (kimbox.folder / "work").mkdir()
    missing = kimbox.json("up", check=False)
    assert (missing["code"], missing["fields"]["path"]) == ("mount-folder-missing", str(kimbox.folder / "data"))
    assert not Machine(BOX).exists
    (kimbox.folder / "data").mkdir()
    (kimbox.folder / "data/given").write_text("of the host")
    kimbox("up")
    yield kimbox
    kimbox("destroy", "-y", BOX)


def write_file(kimbox: Kimbox) -> None:
    """Writes a file to the scratch space, and to its disk on the host."""
    kimbox.sh(BOX, f"yes '{WORDS.decode().strip()}' | head -c {FILE_BYTES} >/staging/left; sync")
    assert WORDS in Machine(BOX).scratch.read_bytes()


def end(kimbox: Kimbox, verb: str) -> None:
    """Ends the run from inside the guest, while a program still uses the scratch space."""
    keep_busy = "cd /staging && { nohup sleep 1000 >/dev/null 2>&1 </dev/null & } && cd / && "
    kimbox.sh(BOX, f"{keep_busy} sudo systemctl {verb}", check=False)


def check_new(kimbox: Kimbox) -> None:
    """Checks that the scratch space is mounted and empty, and that its disk on the host has no old content."""
    assert kimbox.sh(BOX, "stat -c '%a %U' /staging; ls -A /staging") == "1777 root\n"
    assert WORDS not in Machine(BOX).scratch.read_bytes()


def test_it_is_mounted_and_tmpdir_names_it(scratched: Kimbox) -> None:
    """It is writable for all users, without set-uid programs and devices. Commands, also of root, and steps use it."""
    mounted = scratched.sh(BOX, "grep ' /staging ' /proc/mounts").split()
    assert mounted[2] == "ext4"
    assert {"rw", "nosuid", "nodev"} <= set(mounted[3].split(","))
    check_new(scratched)
    named = 'echo "$TMPDIR"; mktemp -u; sudo sh -c \'echo "$TMPDIR"\'; bash -lc \'echo "$TMPDIR"\''
    assert [line.rpartition("/tmp.")[0] or line for line in scratched.sh(BOX, named).split()] == ["/staging"] * 4
    assert scratched.sh(BOX, "cat /run/root-tmpdir ~/user-tmpdir") == "/staging\n/staging\n"
    scratch = scratched.json("status", BOX)["scratch"]
    assert scratch == {"size_bytes": 1 << 30, "mount": "/staging"}


#: What a guest tries to get out of its folder, and to change one that is read-only. Only the last line must be printed.
ESCAPE = f"""
cd {WORK}
ln -s /etc/shadow shadow; ln -s ../../../../../../../../.. up; ln -s {{outside}} outside
sudo cat outside/secret up{{outside}}/secret
sudo mknod device c 1 3
sudo sh -c 'echo changed >{DATA}/given; mount -o remount,rw {DATA}; echo changed >{DATA}/given; rm {DATA}/given'
cat {DATA}/given
"""


def test_folders_of_the_host_are_live_and_closed(scratched: Kimbox, tmp_path: Path) -> None:
    """Both sides see changes, and own the files. Links lead nowhere on the host, and read-only is the host's rule."""
    work, data = scratched.folder / "work", scratched.folder / "data"
    (tmp_path / "secret").write_text("secret")
    assert (work / "taken").read_text() == "of the host"
    assert scratched.sh(BOX, ESCAPE.format(outside=tmp_path)) == "of the host"
    assert (data / "given").read_text() == "of the host"
    assert (work / "up").is_symlink()
    assert not (work / "device").exists()
    scratched.sh(BOX, f"cd {WORK} && rm up outside shadow && mkdir made && echo x >made/file && chmod 750 made")
    made = (work / "made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (work.stat().st_uid, work.stat().st_gid, 0o750)
    (work / "made/file").write_text("changed by the host")
    (work / "new").touch()
    look = f"cd {WORK} && until grep -q host made/file; do :; done; stat -c %U:%G . new made/file"
    assert set(scratched.sh(BOX, look).split()) == {"vagrant:vagrant"}
    below = attrs.evolve(scratched, folder=work / "made")  # as git, kimbox finds its file in a folder above
    assert below("exec", "--", "hostname").stdout == f"{BOX}\n"
    assert scratched.json("status", BOX)["mounts"] == [
        {"location": str(work), "mount_point": WORK, "writable": True, "is_served": True},
        {"location": str(data), "mount_point": DATA, "writable": False, "is_served": True},
    ]


def servers(kimbox: Kimbox) -> list[str]:
    """The folders of the host that are served."""
    return [mount["mount_point"] for mount in kimbox.json("status", BOX)["mounts"] if mount["is_served"]]


def test_suspend_keeps_it(scratched: Kimbox) -> None:
    """Its files, and a file that is open, are the same after suspend and resume."""
    write_file(scratched)
    scratched.sh(BOX, "nohup sh -c 'exec 5>/staging/open; until [ -e /run/lock/go ]; do sleep 0.2; done; echo on >&5' "
                 ">/dev/null 2>&1 </dev/null & until [ -e /staging/open ]; do sleep 0.1; done")  # fmt: skip
    hold = f"nohup sh -c 'cd {WORK} && exec sleep 1000' >/dev/null 2>&1 </dev/null & echo $!"
    user = scratched.sh(BOX, hold).strip()
    in_use = scratched.json("suspend", BOX, check=False)
    assert in_use["code"] == "mount-failed"
    assert WORK in in_use["message"]
    assert scratched.sh(BOX, f"kill {user}; cat {DATA}/given") == "of the host"
    until("the end of that program", lambda: not scratched.sh(BOX, f"ps -o pid= {user}", check=False).strip())
    scratched("suspend", BOX)
    assert Machine(BOX).scratch.exists()
    assert servers(scratched) == []
    scratched("resume", BOX)
    scratched.sh(BOX, "sudo touch /run/lock/go; timeout 60 sh -c 'until [ -s /staging/open ]; do sleep 0.2; done'")
    assert scratched.sh(BOX, "wc -c </staging/left; cat /staging/open") == f"{FILE_BYTES}\non\n"
    assert scratched.sh(BOX, f"cat {DATA}/given; cat {WORK}/taken") == "of the host" * 2


def test_a_reboot_inside_empties_it(scratched: Kimbox) -> None:
    """The guest empties it, although a program still uses it. The file on the host has no old content."""
    write_file(scratched)
    machine = Machine(BOX)
    boot = machine.boot_events()[-1].boot
    end(scratched, "reboot")
    until("the next boot", lambda: machine.boot_events()[-1].boot != boot)
    until("ready", lambda: state_of(BOX) == "ready")
    check_new(scratched)
    assert scratched.sh(BOX, f"cat {DATA}/given; rm {WORK}/taken") == "of the host"


def test_a_halt_removes_it_and_a_new_root_makes_it(scratched: Kimbox) -> None:
    """`halt --force` removes the file on the host. A start with a new root makes one, and mounts the folders again."""
    write_file(scratched)
    scratched.sh(BOX, "sudo touch /gone; sync")
    scratched("halt", "--force", BOX)
    assert not Machine(BOX).scratch.exists()
    until("the end of virtiofsd", lambda: servers(scratched) == [])
    (scratched.folder / "data/given").write_text("of the new start")
    scratched("up", "--boot", "resnap")
    assert servers(scratched) == [WORK, DATA]
    check_new(scratched)
    change = f"sudo sh -c 'echo changed >{DATA}/given; rm {DATA}/given'; echo guest >{WORK}/new"
    assert scratched.sh(BOX, f"{change}; ls -d /gone; cat {DATA}/given {WORK}/taken") == "of the new start" * 2
    assert (scratched.folder / "data/given").read_text() == "of the new start"
    assert (scratched.folder / "work/new").read_text() == "guest\n"


def test_a_mount_point_with_files_is_reported(scratched: Kimbox) -> None:
    """A mount point with a file is not changed, and the box reports it. After it is empty, `provision` succeeds."""
    hidden = "sudo systemctl stop kimbox-scratch && sudo mkdir -p /staging && sudo touch /staging/mine"
    scratched.sh(BOX, f"{hidden}; sudo systemctl start kimbox-scratch", check=False)
    failed = scratched.json("provision", check=False)
    assert failed["exit_code"] == 4
    assert "failed at scratch /staging (exit status 1): /staging is not empty" in failed["message"]
    assert scratched.json("status", BOX)["state"] == "failed"
    scratched.sh(BOX, "sudo rm /staging/mine")
    scratched("provision")
    check_new(scratched)


def test_a_poweroff_inside_empties_it(scratched: Kimbox) -> None:
    """The file on the host stays until the next start or halt. It has no old content."""
    write_file(scratched)
    end(scratched, "poweroff")
    machine = Machine(BOX)
    until("the end of its process", lambda: not machine.running)
    assert WORDS not in machine.scratch.read_bytes()
    assert scratched.json("halt", BOX)["before"] == "halted"
    assert not machine.scratch.exists()
