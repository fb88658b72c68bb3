"""Templates and clones of a real box: identity, life as a machine, what is equal in two clones, and what is left."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Kimbox, exchange, state_of, until

from kimbox import paths, run
from kimbox.files import is_locked
from kimbox.machine import templates
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

#: Numbers of clones that are compared: in every run, and in `script/test soak`. So many of them run at the same time.
COMPARED = [8, pytest.param(100, marks=pytest.mark.soak)]
AT_A_TIME = 8

#: Maximum private memory of an idle clone, as a part of the memory of its guest.
MAX_PRIVATE = 0.15

#: Prints what must differ between two clones, one line each: NAME VALUE.
IDENTITY = r"""
p() { printf '%s %s\n' "$1" "$2"; }
p host_name "$(hostname)"
p machine_id "$(cat /etc/machine-id)"
p boot_id "$(cat /proc/sys/kernel/random/boot_id)"
p host_key "$(sudo cat /persistent/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2)"
p private_key "$(sudo sha256sum /persistent/ssh/ssh_host_ed25519_key | cut -d' ' -f1)"
p authorized_key "$(cut -d' ' -f2 /run/kimbox/authorized_keys/vagrant)"
p getrandom "$(perl -e '$b = "\0" x 64; syscall(318, $b, 64, 0); print unpack "H*", $b')"
p uuid "$(cat /proc/sys/kernel/random/uuid)"
p temporary "$(mktemp -u)"
p old_process "$(cut -d' ' -f1 /run/witness/getrandom)"
p ticks "$(cut -d' ' -f2 /run/witness/getrandom)"
"""

#: A step of provisioning that starts a process which is older than the template. When the host name has changed, it
#: writes 64 random bytes, and how often it has seen the old name. If a clone let it run before it had its identity,
#: that number would differ from that of other clones.
SPEC = """
cpus: 2
warm: true
provision:
  - name: witness
    script: |
      install -m 0755 /dev/stdin /usr/local/bin/witness <<'PERL'
      #!/usr/bin/perl
      sub slurp { open my $f, '<', $_[0] or return ''; local $/; <$f> }
      my $name = slurp('/proc/sys/kernel/hostname');
      my $ticks = 0;
      while (slurp('/proc/sys/kernel/hostname') eq $name) { $ticks++; select undef, undef, undef, 0.01 }
      my $bytes = "\\0" x 64;
      syscall 318, $bytes, 64, 0;
      open my $out, '>', '/run/witness/getrandom.new';
      print $out unpack('H*', $bytes), " $ticks\\n";
      close $out;
      rename '/run/witness/getrandom.new', '/run/witness/getrandom';
      sleep 1 while 1;
      PERL
      cat >/etc/systemd/system/witness.service <<'UNIT'
      [Service]
      ExecStart=/usr/local/bin/witness
      RuntimeDirectory=witness
      [Install]
      WantedBy=multi-user.target
      UNIT
      systemctl enable --now witness
"""


@pytest.fixture(scope="module")
def first(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """The spec of a box `cloned`, and its clone `first`, whose template was made for it.

    Before that, kimbox is killed while it makes the template: nothing runs afterwards, and there is no template.
    """
    kimbox = Kimbox(home, tmp_path_factory.mktemp("clones"))
    kimbox.spec("cloned", SPEC)
    kimbox("build")
    exchange(home)
    places = paths.templates_dir()
    assert killed_when(
        kimbox, lambda: any(events.stat().st_size for events in places.glob(".tmp-*/cloned/events.jsonl"))
    )
    (lock,) = places.glob(".tmp-*/cloned/run.lock")
    until("the guest has ended with kimbox", lambda: not is_locked(lock))
    assert [] == templates.stored()
    kimbox("clone", "first")
    assert [] == templates.remains()
    yield kimbox
    for box in kimbox.json("list")["boxes"]:
        if box["box"] == "cloned":
            kimbox("destroy", "-y", box["name"])


def killed_when(kimbox: Kimbox, is_time: Callable[[], bool]) -> bool:
    """Runs `kimbox clone first`, and kills it with SIGKILL as soon as a condition is true. False if it was faster."""
    environment = ["env", f"KIMBOX_HOME={kimbox.home}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    command = [sys.executable, "-m", "kimbox", "clone", kimbox.folder / "kimbox.yaml", "first"]
    with run.background([*environment, *command]) as one:
        until("the time to kill kimbox", lambda: is_time() or one.code() is not None, every_s=0.002)
        one.send_signal(signal.SIGKILL)
        code = one.wait(10)
        assert code in (0, -signal.SIGKILL), one.output()
        return code == -signal.SIGKILL


def identity_of(kimbox: Kimbox, name: str) -> dict[str, str]:
    """What a clone says of itself. Its old process has been thawed, but may not have run yet."""
    wait = "until [ -s /run/witness/getrandom ]; do sleep 0.05; done\n"
    return dict(line.split(" ", 1) for line in kimbox.sh(name, wait + IDENTITY).splitlines())


def template_of(kimbox: Kimbox, name: str) -> Path:
    return templates.folder(kimbox.json("status", name)["template"])


def test_a_clone_is_ready_and_has_its_own_identity(first: Kimbox) -> None:
    status = first.json("status", "first")
    assert ("ready", "clone", "cloned") == (status["state"], status["purpose"], status["box"])
    found, machine = identity_of(first, "first"), Machine("first")
    record = machine.record()
    assert "first" == found["host_name"]
    assert record.uuid.replace("-", "") == found["machine_id"]
    assert machine.boot_events()[-1].boot == found["boot_id"]
    assert f"ssh-ed25519 {found['host_key']}" == status["host_key"]
    assert machine.key.with_suffix(".pub").read_text().split()[1] == found["authorized_key"]
    assert not list(machine.folder.glob("host_key*"))
    assert "" == first.sh("first", "systemctl --failed --no-legend")
    assert "1\n" == first.sh("first", "pgrep -c -u vagrant sshd"), "only the login of this command"


def test_the_files_of_a_template_are_private_and_never_change(first: Kimbox) -> None:
    folder = template_of(first, "first")
    assert 0o700 == folder.parent.stat().st_mode & 0o777
    assert {0o600} == {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    ram = (folder / templates.RAM).stat()
    assert ram.st_blocks * 512 < ram.st_size / 3
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}
    first("clone", "second")
    first.sh("second", "dd if=/dev/zero of=/dev/shm/fill bs=1M count=64 2>&1; sudo sh -c 'echo x >/root/x; sync'")
    first("destroy", "-y", "second")
    assert before == {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}
    assert not Machine("second").folder.exists()


def test_a_killed_clone_is_no_machine(first: Kimbox) -> None:
    """kimbox is killed while QEMU starts a clone. The next `clone` of the name ends its process."""
    first("destroy", "-y", "first")
    machine = Machine("first")
    for _ in range(5):  # kimbox needs half a second until the clone is a machine, and this process may get none of it
        if killed_when(first, machine.pid_file.exists) and not machine.exists:
            break
        first("destroy", "-y", "first")
    assert "absent" == state_of("first")
    assert str(machine.folder) in [item["path"] for item in first.json("prune", "--dry-run")["unused"]]
    first("clone", "first")
    assert "first\n" == first.sh("first", "hostname")


def test_a_warm_box_starts_from_the_template(first: Kimbox) -> None:
    started = first.json("up")
    assert ("cloned", "box", "ready") == (started["name"], started["purpose"], started["state"])
    assert template_of(first, "first").name == started["template"]
    assert "cloned\n" == first.sh("cloned", "hostname")
    assert "ready" == first.json("up")["before"]
    first("destroy", "-y", "cloned")


def test_a_name_is_taken_once(first: Kimbox) -> None:
    assert "name-taken" == first.json("clone", "first", check=False)["code"]


def private_bytes(name: str) -> int:
    """The memory that the process of a machine shares with no other process."""
    rollup = Path(f"/proc/{int(Machine(name).pid_file.read_text())}/smaps_rollup").read_text()
    return 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:"))


@pytest.mark.parametrize("count", COMPARED)
def test_none_alike(first: Kimbox, count: int) -> None:
    """Nothing that must differ is equal in two clones, and their memory is mostly that of the template."""
    found: list[dict[str, str]] = []
    for start in range(0, count, AT_A_TIME):
        names = [f"alike-{number}" for number in range(start, min(count, start + AT_A_TIME))]
        first("clone", *names)
        for name in names:
            assert private_bytes(name) <= MAX_PRIVATE * (Machine(name).record().memory_bytes or 0)
        found += [identity_of(first, name) for name in names]
        for name in names:
            first("destroy", "-y", name)
    assert len({one.pop("ticks") for one in found}) == 1
    for key in found[0]:
        values = [one[key] for one in found]
        assert len(set(values)) == count, (key, values)
        assert "" not in values, key


def test_suspend_and_resume(first: Kimbox) -> None:
    """A suspended clone has all of its memory in its own disk."""
    first.sh("first", "echo here >/dev/shm/mark")
    first("suspend", "first")
    assert "suspended" == state_of("first")
    first("resume", "first")
    assert "here\nfirst\n" == first.sh("first", "cat /dev/shm/mark; hostname")


def test_a_halted_clone_boots_as_any_machine(first: Kimbox) -> None:
    before = identity_of(first, "first")
    assert "first" == before["host_name"]
    first.sh("first", "sudo sh -c 'echo kept >/persistent/kept'")
    first("halt", "first")
    assert ["keep"] == [event.text("mode") for event in Machine("first").boot_events() if event.name == "booting"]
    summary = first.json("up", "first")
    assert "ready" == summary["state"]
    after = dict(line.split(" ", 1) for line in first.sh("first", IDENTITY.partition("p old_process")[0]).splitlines())
    same = ("host_name", "machine_id", "host_key", "private_key", "authorized_key")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    assert before["boot_id"] != after["boot_id"]
    assert "kept\n" == first.sh("first", "cat /persistent/kept")
    assert "inactive\n" == first.sh("first", "systemctl is-active kimbox-freeze || true")
    assert (None, "clone") == (summary["template"], summary["purpose"])  # its disk is on the image now


def test_a_clone_that_is_halted_at_once_shuts_down(first: Kimbox) -> None:
    """Some of its services are still frozen, and systemd would wait for them."""
    first("clone", "halted")
    first("halt", "halted")
    assert "Power down" in Machine("halted").serial_log.read_text()
    first("destroy", "-y", "halted")


def test_a_clone_that_crashes_at_once_boots_with_another_key(first: Kimbox) -> None:
    """Its identity was not on its disk. The key of the template is on none."""
    first("clone", "crashed")
    key = first.json("status", "crashed")["host_key"]
    os.kill(int(Machine("crashed").pid_file.read_text()), signal.SIGKILL)
    assert "ready" == first.json("up", "crashed")["state"]
    after = first.json("status", "crashed")["host_key"]
    assert after not in (key, None)
    assert "crashed\n127.0.1.1 crashed\n" == first.sh("crashed", "hostname; grep crashed /etc/hosts")
    first("destroy", "-y", "crashed")


def test_prune_removes_a_template_that_no_clone_uses(first: Kimbox) -> None:
    first("clone", "last")
    folder = template_of(first, "last")
    listed: list[dict[str, Any]] = first.json("list")["templates"]
    assert [("cloned", folder.name)] == [(item["box"], item["key"]) for item in listed if item["box"] == "cloned"]
    assert listed[0]["size_bytes"] > 1 << 20
    assert folder not in [Path(item["path"]) for item in first.json("prune", "--dry-run")["unused"]]
    first("destroy", "-y", "last")
    assert str(folder) in [item["path"] for item in first.json("prune", "--dry-run")["unused"]]
    assert templates.remove(folder.name, is_unused=lambda: True)
    assert not [path for path in paths.templates_dir().iterdir() if path.suffix not in (".lock", ".lease")]
