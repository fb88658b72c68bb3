"""Scratch space in a real guest: there at every start, named by TMPDIR, gone with the run, kept over a suspend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox, state_of, until

from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

BOX = "scratched"

#: A file of so many bytes is left in the scratch space, full of these words.
LEFT_BYTES = 16 << 20
WORDS = b"nobody will miss me\n"

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


def leave(kimbox: Kimbox) -> None:
    """Puts a file into the scratch space, as far as its disk."""
    kimbox.sh(BOX, f"yes '{WORDS.decode().strip()}' | head -c {LEFT_BYTES} >/staging/left; sync")
    assert WORDS in Machine(BOX).scratch.read_bytes()


def end(kimbox: Kimbox, verb: str) -> None:
    """The guest ends its run by itself, while a program works in the scratch space that nobody has told to stop."""
    left = "cd /staging && { nohup sleep 1000 >/dev/null 2>&1 </dev/null & } && cd / && "
    kimbox.sh(BOX, f"{left} sudo systemctl {verb}", check=False)


def check_new(kimbox: Kimbox) -> None:
    """The scratch space is mounted, empty, and the disk on the host holds nothing of before."""
    assert kimbox.sh(BOX, "stat -c '%a %U' /staging; ls -A /staging") == "1777 root\n"
    assert WORDS not in Machine(BOX).scratch.read_bytes()


def test_it_is_there_and_named(scratched: Kimbox) -> None:
    """Mounted, for everyone, without programs of root or devices; commands, root's too, and steps have TMPDIR."""
    mounted = scratched.sh(BOX, "grep ' /staging ' /proc/mounts").split()
    assert mounted[2] == "ext4"
    assert {"rw", "nosuid", "nodev"} <= set(mounted[3].split(","))
    check_new(scratched)
    named = 'echo "$TMPDIR"; mktemp -u; sudo sh -c \'echo "$TMPDIR"\'; bash -lc \'echo "$TMPDIR"\''
    assert [line.rpartition("/tmp.")[0] or line for line in scratched.sh(BOX, named).split()] == ["/staging"] * 4
    assert scratched.sh(BOX, "cat /run/root-tmpdir ~/user-tmpdir") == "/staging\n/staging\n"
    told = scratched.json("status", BOX)["scratch"]
    assert told == {"size_bytes": 1 << 30, "mount": "/staging"}


def test_suspend_keeps_it(scratched: Kimbox) -> None:
    """What is in it, and a file that is open, survive suspend and resume."""
    leave(scratched)
    scratched.sh(BOX, "nohup sh -c 'exec 5>/staging/open; until [ -e /run/lock/go ]; do sleep 0.2; done; echo on >&5' "
                 ">/dev/null 2>&1 </dev/null & until [ -e /staging/open ]; do sleep 0.1; done")  # fmt: skip
    scratched("suspend", BOX)
    assert Machine(BOX).scratch.exists()
    scratched("resume", BOX)
    scratched.sh(BOX, "sudo touch /run/lock/go; timeout 60 sh -c 'until [ -s /staging/open ]; do sleep 0.2; done'")
    assert scratched.sh(BOX, "wc -c </staging/left; cat /staging/open") == f"{LEFT_BYTES}\non\n"


def test_a_reboot_inside_empties_it(scratched: Kimbox) -> None:
    """Without the host's doing, and although a program was still at work in it: the host's file holds nothing of it."""
    leave(scratched)
    machine = Machine(BOX)
    boot = machine.boot_events()[-1].boot
    end(scratched, "reboot")
    until("the next boot", lambda: machine.boot_events()[-1].boot != boot)
    until("ready", lambda: state_of(BOX) == "ready")
    check_new(scratched)


def test_a_halt_removes_it_and_a_start_makes_it(scratched: Kimbox) -> None:
    """The file on the host goes with the run, also where the plug is pulled; the next run has another."""
    leave(scratched)
    scratched("halt", "--force", BOX)
    assert not Machine(BOX).scratch.exists()
    scratched("up")
    check_new(scratched)


def test_what_is_in_the_way_is_named(scratched: Kimbox) -> None:
    """A mount point that holds something is left alone, and the box says so; once it is empty, `provision` goes on."""
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
    """The host's file, which stays until the next start or halt, holds nothing of what was in it."""
    leave(scratched)
    end(scratched, "poweroff")
    machine = Machine(BOX)
    until("the end of its process", lambda: not machine.running)
    assert WORDS not in machine.scratch.read_bytes()
    assert scratched.json("halt", BOX)["before"] == "halted"
    assert not machine.scratch.exists()
