"""Scratch space in a real guest: mounted at every start, named by TMPDIR, empty in each run, kept by suspend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox, state_of, until

from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

BOX = "scratched"

#: Size and content of a file that the tests write to the scratch space.
FILE_BYTES = 16 << 20
WORDS = b"temporary content\n"

SPEC = """\
scratch: {size: 1GiB}
provision:
  - {name: as-root, run: always, script: 'echo "$TMPDIR" >/run/root-tmpdir'}
  - {name: as-user, run: always, mode: user, script: 'echo "$TMPDIR" >~/user-tmpdir'}
"""


@pytest.fixture(scope="module")
def scratched(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """A box with scratch space."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(BOX))
    kimbox.spec(BOX, SPEC)
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


def test_suspend_keeps_it(scratched: Kimbox) -> None:
    """Its files, and a file that is open, are the same after suspend and resume."""
    write_file(scratched)
    scratched.sh(BOX, "nohup sh -c 'exec 5>/staging/open; until [ -e /run/lock/go ]; do sleep 0.2; done; echo on >&5' "
                 ">/dev/null 2>&1 </dev/null & until [ -e /staging/open ]; do sleep 0.1; done")  # fmt: skip
    scratched("suspend", BOX)
    assert Machine(BOX).scratch.exists()
    scratched("resume", BOX)
    scratched.sh(BOX, "sudo touch /run/lock/go; timeout 60 sh -c 'until [ -s /staging/open ]; do sleep 0.2; done'")
    assert scratched.sh(BOX, "wc -c </staging/left; cat /staging/open") == f"{FILE_BYTES}\non\n"


def test_a_reboot_inside_empties_it(scratched: Kimbox) -> None:
    """The guest empties it, although a program still uses it. The file on the host has no old content."""
    write_file(scratched)
    machine = Machine(BOX)
    boot = machine.boot_events()[-1].boot
    end(scratched, "reboot")
    until("the next boot", lambda: machine.boot_events()[-1].boot != boot)
    until("ready", lambda: state_of(BOX) == "ready")
    check_new(scratched)


def test_a_halt_removes_it_and_a_start_makes_it(scratched: Kimbox) -> None:
    """`halt --force` removes the file on the host. The next start makes a new one."""
    write_file(scratched)
    scratched("halt", "--force", BOX)
    assert not Machine(BOX).scratch.exists()
    scratched("up")
    check_new(scratched)


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
