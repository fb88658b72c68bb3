"""The verbs for a small box in a real guest."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
from conftest import Kimbox, until
from promises import PROMISE, promised
from servers import free_port

from kimbox import run
from kimbox.actions import service
from kimbox.actions.userunits import quoted
from kimbox.drivers import accelerator
from kimbox.drivers.qemu import process as qemu
from kimbox.machine.folder import Machine
from kimbox.paths import boxes_dir
from kimbox.project.project import Project
from kimbox.spec.layout import SNAPSHOT_CHUNK_BYTES, plan
from kimbox.spec.load import load_box

pytestmark = pytest.mark.guest

#: Creates a unit that runs immediately after the event `ready`, in a box without steps.
CREATE_UNIT = """
set -e
cat >/persistent/promise
printf '%s\\n' '[Unit]' DefaultDependencies=no After=kimbox-ready.service '[Service]' Type=oneshot User=vagrant \\
    StandardOutput=file:/persistent/moment 'ExecStart=sh /persistent/promise' >/etc/systemd/system/moment.service
mkdir -p /etc/systemd/system/sysinit.target.wants
ln -s ../moment.service /etc/systemd/system/sysinit.target.wants/
sync
"""

#: The script that runs a unit in a guest.
SUPERVISE = Path(__file__).with_name("supervise")

#: Size of the file that is written to each of two file systems.
JUNK_BYTES = 60 << 20


def image_of(kimbox: Kimbox, box: str) -> Path:
    """Returns the folder of the image that a box was created from."""
    return kimbox.home / "images" / kimbox.json("status", box)["image"]


def test_the_first_up_needed_no_ssh(minimal: Kimbox) -> None:
    """The guest has taken its manifest from the disk of its start. It has neither waited for the host nor failed."""
    names = [event.name for event in Machine("minimal").boot_events()]
    assert "ready" in names
    assert not {"waiting", "failed"} & set(names)
    taken, offered = minimal.sh(
        "minimal", "cat /persistent/kimbox/delivery; sudo cut -d ' ' -f 4 /run/credentials/@system/kimbox.delivery"
    ).split()
    assert taken == offered
    assert not Machine("minimal").delivery.exists()


def test_addresses_are_not_randomized_under_emulation(minimal: Kimbox) -> None:
    """Random ones would make QEMU translate each library for each process. test_secure.py looks at a sealed box."""
    expected = "2\n" if accelerator.find().name == "kvm" else "0\n"
    assert expected == minimal.sh("minimal", "cat /proc/sys/kernel/randomize_va_space")


def test_up_again_does_nothing(minimal: Kimbox) -> None:
    """`up` of a ready box changes nothing: the process and the images are the same."""
    before = minimal.json("status", "minimal")
    images = sorted((minimal.home / "images").iterdir())
    second = minimal.json("up", "minimal")
    assert second["before"] == "ready"
    assert second["pid"] == before["pid"]
    assert sorted((minimal.home / "images").iterdir()) == images


def test_exec_is_the_command_itself(minimal: Kimbox) -> None:
    """Exit status, stdin, stdout and stderr pass through. Arguments are unchanged."""
    done = minimal("exec", "minimal", "--", "sh", "-c", "cat; echo err >&2; exit 37", check=False, input="in\n")
    assert (done.code, done.stdout, done.stderr) == (37, "in\n", "err\n")
    words = ["a b", "$HOME", "'", '"', "*", "\\", "é"]
    assert minimal("exec", "minimal", "--", "printf", "%s\n", *words).stdout.splitlines() == words
    big = "x" * 3_000_000
    assert minimal("exec", "minimal", "--", "cat", input=big).stdout == big


def test_a_program_that_is_killed_ends_alone(minimal: Kimbox) -> None:
    """Also if it has exhausted the memory. Its status is 128 + 9, and sshd, in another control group, continues."""
    sshd = "systemctl show -P MainPID ssh"
    before = minimal.sh("minimal", f"{sshd}; cat /proc/$({sshd})/cgroup /proc/self/cgroup")
    first, of_sshd, of_session = before.splitlines()
    assert of_sshd != of_session
    group = f"/sys/fs/cgroup{of_session.removeprefix('0::')}"
    limit, controllers = minimal.sh("minimal", f"cat {group}/pids.max {group}/cgroup.controllers").splitlines()
    assert {"cpu", "pids"} <= {*controllers.split()}
    assert 100 < int(limit) < int(minimal.sh("minimal", "cat /proc/sys/kernel/threads-max"))
    done = minimal("exec", "minimal", "--", "perl", "-e", "push @a, q(x) x (1<<26) while 1", check=False)
    assert (137, "") == (done.code, done.stdout + done.stderr)
    assert f"{first}\n" == minimal.sh("minimal", sshd)


def test_lvm_of_the_guest_accepts_the_disk(minimal: Kimbox) -> None:
    """LVM in the guest finds no error in the volume group that kimbox wrote, and the names and sizes of the spec."""
    layout = plan(load_box(Path(minimal.json("status", "minimal")["spec"])).disk)
    checked = minimal.sh("minimal", "sudo vgck vagrant-pipeline && sudo pvck /dev/vda2 2>&1; echo $?")
    assert checked.splitlines()[-1] == "0"
    assert "rror" not in checked
    columns = "lv_name,lv_size,origin,chunk_size,lv_health_status"
    report = f"sudo lvs --reportformat json --units b --nosuffix -o {columns} vagrant-pipeline"
    rows = {row["lv_name"]: row for row in json.loads(minimal.sh("minimal", report))["report"][0]["lv"]}
    assert {name: int(row["lv_size"]) for name, row in rows.items()} == {
        volume.name: volume.place.size_bytes for volume in layout.volumes
    }
    assert int(rows["root_snap"]["chunk_size"]) == SNAPSHOT_CHUNK_BYTES
    assert rows["root_snap"]["origin"] == "root"
    assert {row["lv_health_status"] for row in rows.values()} == {""}
    mounts = minimal.sh("minimal", "cat /proc/mounts")
    assert "/dev/mapper/vagrant--pipeline-root_snap / ext4 rw" in mounts
    assert "/dev/mapper/vagrant--pipeline-persistent /persistent ext4 rw" in mounts


def test_file_systems_are_clean_and_the_image_is_sparse_and_small(minimal: Kimbox) -> None:
    """e2fsck finds no error in the file systems of the image. Its content is below 350 MB, and its file is sparse."""
    folder = image_of(minimal, "minimal")
    disk = folder / "disk.raw"
    layout = plan(load_box(Path(minimal.json("status", "minimal")["spec"])).disk)
    for place in (layout.boot, layout.root.place, layout.persistent.place):
        run.run(["e2fsck", "-fn", f"{disk}?offset={place.offset_bytes}"])
    assert json.loads((folder / "image.json").read_text())["unpacked_bytes"] < 350_000_000
    assert disk.stat().st_blocks * 512 < 500_000_000
    assert disk.stat().st_size == layout.size_bytes


def test_the_rest_of_the_system_starts_too(minimal: Kimbox) -> None:
    """Services that start after `ready` run soon after it: udev, networkd, the journal. No unit has failed."""
    minimal.sh(
        "minimal", "timeout 120 sh -c 'until systemctl is-system-running --wait >/dev/null 2>&1; do sleep 1; done'"
    )
    active = minimal.sh("minimal", "systemctl is-active systemd-udevd systemd-journald systemd-networkd dbus ssh")
    assert active.split() == ["active"] * 5
    assert minimal.sh("minimal", "systemctl --failed --no-legend") == ""
    # The brackets exclude the entry that sudo writes for this command.
    assert minimal.sh("minimal", "sudo journalctl -b -q --no-pager -g 'ordering c[y]cle' || true") == ""
    assert "/dev/vda1 /boot ext4" in minimal.sh("minimal", "cat /proc/mounts")
    assert len(minimal.sh("minimal", "cat /proc/swaps").splitlines()) == 2
    assert "could not resolve" not in minimal("exec", "minimal", "--", "sudo", "true").stderr


def test_a_real_systemd_runs_the_unit_of_a_service(minimal: Kimbox) -> None:
    """The unit of `kimbox service`, with a stand-in for kimbox and short delays: a crash, the end of it, and a stop."""
    project = Project(load_box(boxes_dir() / "minimal.yaml"), "minimal")
    text = service.text_of(project, "kept", is_clone=False)
    for old, new in (
        (f"{quoted(sys.executable)} -P -m kimbox", "/usr/local/bin/stand-in"),
        (str(Machine("kept").pid_file), "/run/kept.pid"),
        (f"RestartSec={service.DELAY_S}", "RestartSec=0.2"),
        (f"RestartMaxDelaySec={service.MAX_DELAY_S}", "RestartMaxDelaySec=0.4"),
    ):
        assert old in text
        text = text.replace(old, new)
    minimal("exec", "minimal", "--", "sh", "-c", "cat >/tmp/supervise", input=SUPERVISE.read_text())
    seen = minimal("exec", "minimal", "--", "sudo", "sh", "/tmp/supervise", input=text).stdout
    assert seen.splitlines() == [
        "its process is the main process",
        "a process that ends by itself is not halted, and not started",
        "a crash starts it again",
        "a stop halts it",
        f"it gives up after {service.MAX_STARTS} starts",
    ]


def test_no_secret_is_in_the_command_line_and_only_the_box_key_logs_in(minimal: Kimbox) -> None:
    """QEMU's arguments contain no private key. Another key and root are refused."""
    machine = Machine("minimal")
    arguments = Path(f"/proc/{qemu.pid(machine)}/cmdline").read_bytes().decode()
    secret = machine.key.read_text().splitlines()[1]
    assert secret not in arguments
    assert machine.key.stat().st_mode & 0o077 == 0
    port = minimal.json("status", "minimal")["ssh_port"]
    other = minimal.folder / "other"
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other])
    for key, user in ((other, "vagrant"), (machine.key, "root")):
        options = ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes"]
        known = ["-o", f"UserKnownHostsFile={minimal.folder / 'known'}", "-o", "IdentityAgent=none"]
        tried = run.run(["ssh", *options, *known, "-i", key, "-p", str(port), f"{user}@127.0.0.1", "true"], check=False)
        assert tried.code == 255
        assert "Permission denied" in tried.stderr


def test_files_are_copied_in_both_directions(minimal: Kimbox, tmp_path: Path) -> None:
    """The box has no rsync: scp copies."""
    folder = tmp_path / "a folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below/file").write_text("text")
    assert "scp" == minimal.json("cp", str(folder), "minimal:/tmp")["program"]
    minimal("cp", "minimal:/tmp/a f*/below/*", str(tmp_path / "back"))
    assert "text" == (tmp_path / "back").read_text()
    minimal.sh("minimal", "rm -r '/tmp/a folder'")


def ssh_config(kimbox: Kimbox) -> Path:
    """The output of ssh-config in a file."""
    config = kimbox.folder / "ssh.conf"
    config.write_text(kimbox("ssh-config", "minimal").stdout)
    return config


def test_ssh_config_serves_other_programs(minimal: Kimbox, tmp_path: Path) -> None:
    """ssh, scp, git and rsync connect to the box with the output of ssh-config."""
    config = ssh_config(minimal)
    ssh = shlex.join(["ssh", "-F", str(config)])
    assert run.run(["ssh", "-F", config, "kimbox-minimal", "echo", "here"]).stdout == "here\n"
    run.run(["scp", "-q", "-F", config, config, "kimbox-minimal:/tmp/copied"])
    assert minimal.sh("minimal", "cat /tmp/copied; git init -q --bare /tmp/work.git") == config.read_text()
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "file").write_text("text")
    commit = ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "x"]
    for words in (["init", "-q"], ["add", "file"], commit):
        run.run(["git", "-C", repo, *words])
    run.run(
        ["git", "-C", repo, "push", "-q", "kimbox-minimal:/tmp/work.git", "HEAD:main"], env={"GIT_SSH_COMMAND": ssh}
    )
    clone = ["git", "clone", "-q", "-b", "main", "kimbox-minimal:/tmp/work.git", tmp_path / "back"]
    run.run(clone, env={"GIT_SSH_COMMAND": ssh})
    assert (tmp_path / "back/file").read_text() == "text"
    # The box has no rsync: it gets that of this host, with its libraries.
    run.run(["scp", "-q", "-F", config, *programs_of("rsync"), "kimbox-minimal:/tmp"])
    there = "env LD_LIBRARY_PATH=/tmp /tmp/rsync"
    run.run(["rsync", "-a", "-e", ssh, f"--rsync-path={there}", f"{tmp_path / 'back'}/", "kimbox-minimal:/tmp/synced"])
    assert (
        minimal.sh("minimal", "cat /tmp/synced/file; rm -rf /tmp/*.so.* /tmp/rsync /tmp/synced /tmp/work.git") == "text"
    )


def programs_of(name: str) -> list[str]:
    """The path of a program, and those of its libraries without the ones of libc."""
    path = run.require(name)
    libraries = re.findall(r"=> (/\S+)", run.run(["ldd", path]).stdout)
    return [path, *(library for library in libraries if not re.search(r"/(libc|libm|libpthread)\.so", library))]


#: A server on the default address of Jupyter, which only the box reaches.
SERVER = (
    "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1:8888', Listen => 5) or die; "
    "while (my $c = $s->accept) { print $c 'notebook'; close $c }"
)


def answer(port: int, *, by_socks: bool = False) -> str:
    """What the server answers at a port of the host, or by a proxy of ssh's option -D (RFC 1928); empty: nothing."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            if by_socks:
                connection.sendall(bytes([5, 1, 0]))
                connection.recv(2)
                connection.sendall(bytes([5, 1, 0, 1, 127, 0, 0, 1]) + (8888).to_bytes(2))
                connection.recv(10)
            return connection.makefile().read()
    except OSError:
        return ""


def test_an_editor_and_a_notebook(minimal: Kimbox) -> None:
    """An editor's session (ssh -T -D, a shell that reads a script) and `kimbox ssh -- -L` reach a server of the box."""
    start = f"nohup perl -e {shlex.quote(SERVER)} >/dev/null 2>&1 </dev/null & echo $!"
    server = minimal.sh("minimal", start).strip()
    socks, local = free_port(), free_port()
    config = ssh_config(minimal)
    assert run.run(["ssh", "-T", "-F", config, "kimbox-minimal", "sh"], input="echo $((6 * 7))\n").stdout == "42\n"
    with run.background(["ssh", "-T", "-N", "-D", f"127.0.0.1:{socks}", "-F", str(config), "kimbox-minimal"]):
        until("an answer by the editor's proxy", lambda: answer(socks, by_socks=True) == "notebook")
    words = ["ssh", "minimal", "--", "-N", "-L", f"127.0.0.1:{local}:127.0.0.1:8888"]
    environment = ["env", f"KIMBOX_HOME={minimal.home}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    with run.background([*environment, sys.executable, "-m", "kimbox", *words]):
        until("an answer at the forwarded port", lambda: answer(local) == "notebook")
    minimal.sh("minimal", f"kill {server}")


def test_many_commands_side_by_side(minimal: Kimbox) -> None:
    """As GNU parallel and `xargs -P` start them: each has its own output and exit status, and none takes the input."""
    kimbox = shlex.join([sys.executable, "-m", "kimbox", "exec", "minimal", "--"])
    script = f"seq 8 | xargs -P 8 -I N {kimbox} sh -c 'echo $((N * N)); exit $((N % 2))'"
    done = run.run(["sh", "-c", script], check=False, env=minimal.environment, cwd=minimal.folder)
    assert (done.code, sorted(map(int, done.stdout.split()))) == (123, [n * n for n in range(1, 9)])


def test_halt_and_up_keep_the_disk_and_the_host_key(minimal: Kimbox) -> None:
    """`keep` is the default: a file stays after a halt. A second halt reports that the box is halted.

    All that `ready` promises is true when the event is sent, also without any provisioning. The box shuts down without
    logind, which reads the power button: by its port.
    """
    key = Machine("minimal").known_hosts.read_text()
    minimal("exec", "minimal", "--", "sudo", "sh", "-c", CREATE_UNIT, input=PROMISE)
    minimal.sh("minimal", "echo mine >~/mine; sync")
    minimal.sh("minimal", "sudo systemctl mask --runtime --now systemd-logind.service")
    halted = minimal("halt", "minimal")
    assert ("minimal is halted\n", False) == (halted.stdout, "did not shut down" in halted.stderr)
    console = Machine("minimal").serial_log.read_bytes()
    assert (b"reboot: Power down" in console, b": not found" in console) == (True, False)  # a program of the initramfs
    assert minimal.json("halt", "minimal")["before"] == "halted"
    assert minimal.json("up", "minimal")["state"] == "ready"
    show = "cat /persistent/moment 2>/dev/null || true"  # the unit may not have started
    until("the end of the unit", lambda: "mounts: " in minimal.sh("minimal", show), every_s=2)
    assert {"/boot", "/persistent", "/tmp", "/run/lock"} <= promised(minimal.sh("minimal", "cat /persistent/moment"))
    assert minimal.sh("minimal", "cat ~/mine") == "mine\n"
    assert Machine("minimal").known_hosts.read_text() == key


def test_what_a_start_took_and_what_it_leaves(minimal: Kimbox) -> None:
    """Its stages are known from the start of QEMU. The root has its options of /etc/fstab."""
    start = minimal.json("logs", "--timeline", "minimal")["start"]
    assert ("QEMU", "ready") == (start["zero"], start["result"])
    assert {"kernel", "initramfs", "systemd starts", "system starts"} < {stage["name"] for stage in start["stages"]}
    (root,) = [line for line in minimal.sh("minimal", "cat /proc/mounts").splitlines() if line.split()[1] == "/"]
    assert {"rw", "noatime", "errors=remount-ro"} <= set(root.split()[3].split(","))


def test_a_box_without_its_process_is_crashed_and_starts_again(minimal: Kimbox) -> None:
    """After kill -9 of QEMU, the state is `crashed` immediately. `up` starts the box."""
    process = minimal.json("status", "minimal")["pid"]
    run.run(["kill", "-9", str(process)])
    assert qemu.wait_until_gone(Machine("minimal"), 10)
    status = minimal.json("status", "minimal")
    assert status["state"] == "crashed"
    assert minimal.json("up", "minimal")["state"] == "ready"


@pytest.mark.soak
def test_a_filled_box_is_shrunk(minimal: Kimbox, tmp_path: Path) -> None:
    """`shrink` frees the space of deleted files in the snapshot and in /persistent. Other files stay. The box boots."""
    minimal.sh(
        "minimal",
        "head -c 60M /dev/urandom | sudo tee /var/tmp/junk | sudo tee /persistent/junk >/dev/null; "
        "head -c 3M /dev/urandom | sudo tee /kept | sudo tee /persistent/kept >/dev/null; sync; "
        "sudo rm /var/tmp/junk /persistent/junk; sync",
    )
    sums = minimal.sh("minimal", "sha256sum /kept /persistent/kept /usr/bin/* | sha256sum")
    minimal("halt", "minimal")
    done = minimal.json("shrink", "minimal")
    assert ("kept", []) == (done["snapshot"], done["notes"])
    assert done["before_bytes"] > 2 * JUNK_BYTES
    assert done["after_bytes"] < done["before_bytes"] - 2 * JUNK_BYTES
    minimal("up", "minimal")
    assert sums == minimal.sh("minimal", "sha256sum /kept /persistent/kept /usr/bin/* | sha256sum")
    minimal("halt", "minimal")
    layout = plan(load_box(Path(minimal.json("status", "minimal")["spec"])).disk)
    raw = tmp_path / "raw"
    run.run(["qemu-img", "convert", "-O", "raw", Machine("minimal").disk, raw])
    for place in (layout.boot, layout.root.place, layout.persistent.place):
        checked = run.run(["e2fsck", "-fn", f"{raw}?offset={place.offset_bytes}"], check=False)
        assert checked.ok, checked.stdout


def test_a_name_belongs_to_one_spec(minimal: Kimbox) -> None:
    """Another spec with the same name is refused. The message names the spec of the box."""
    spec = minimal.spec("minimal")
    refused = minimal.json("up", "-f", spec, check=False)
    assert refused["exit_code"] == 5
    assert "boxes/minimal.yaml" in refused["message"]
