"""Three boxes of one spec, with variables, a setting and a network: one command starts them, and one stops them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import sys
from pathlib import Path

import pytest
import screens
from conftest import Kimbox, until

from kimbox import run
from kimbox.drivers.qemu.command import PORT
from kimbox.filelocks import is_locked
from kimbox.machine import forwarding
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

#: A value with everything that is special to a shell. PAM and each step must leave it unchanged.
HARD = """a $HOME 'b' "c" `d` \\e ;f & g=h * é"""

#: As many as a file of PAM may have in a line, with the name.
LONG = "x" * 800

#: Name of each box -> its address in the network, in the order of their starts.
BOXES = {"first": "10.57.0.1", "second": "10.57.0.2", "third": "10.57.0.3"}

#: A program that sends a frame to a socket.
SEND = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(bytes(60), sys.argv[1])"

SECRET = "s3cr3t $x 'y'"

SPEC = f"""\
kimbox: 1
base: [minimal.yaml]
memory: 512MiB
env:
  LONG: {LONG}
forwards: [{{guest: auto}}]
networks:
  lan: {{subnet: 10.57.0.0/24, addresses: {{first: 10.57.0.1, second: 10.57.0.2, third: 10.57.0.3}}}}
boxes:
  second:
    needs: [first]
    display: spice
  third: {{needs: [first], memory: 384MiB}}
  first:
    display: vnc
    env:
      HARD: {json.dumps(HARD)}
      TOKEN: {{file: token}}
    provision:
      - name: see
        script: |
          printf '%s\\n%s\\n%s\\n' "$HARD" "$TOKEN" "$LONG" >/var/tmp/root
          cat /proc/$$/cmdline /proc/$PPID/cmdline >/var/tmp/words
      - {{name: see-user, mode: user, script: 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG" >/var/tmp/user'}}
"""

#: What a box has: in the two steps, a session, a command of sudo, and a new login.
SHOW = """
cat /var/tmp/root /var/tmp/user
printf '%s\\n%s\\n%s\\n' "$HARD" "$TOKEN" "$LONG"
sudo sh -c 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG"'
sudo su - vagrant -c 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG"'
"""

#: The number of files below /persistent and /etc with the secret; the arguments of the step with it; its place in /run.
SEARCH = """
printf 's3c%s' r3t >/tmp/pattern
sudo grep -rlF -f /tmp/pattern /persistent /etc /var /home 2>/dev/null | grep -cv -e /var/tmp/root -e /var/tmp/user
stat -c '%a %U' /run/kimbox/env
grep -c -f /tmp/pattern /var/tmp/words || true
"""

#: The first words of the ssh servers of the other boxes, by their names; then the routes of the card of the network.
GREETINGS = """
for other in {others}; do
    timeout 60 bash -c 'until exec 3<>/dev/tcp/$0/22; do sleep 0.2; done; read -r line <&3; echo "$line"' \\
        $other 2>/dev/null
done
grep -c '# kimbox: a box of the same spec' /etc/hosts
sed -n 's/^eth1[\t ]*//p' /proc/net/route
"""

#: What `GREETINGS` prints: three names; one route, to the subnet, without a gateway (proc(5): in hex, little-endian).
GREETED = r"(SSH-2\.0-OpenSSH\S* .*\n){2}3\n0000390A\t00000000\t0001\t.*\t00FFFFFF\t.*\n"


def test_three_boxes_of_one_spec(kimbox: Kimbox) -> None:
    """The others start when the first is ready. Variables arrive unchanged, and the secret is stored nowhere."""
    (kimbox.folder / "kimbox.yaml").write_text(SPEC)
    token = kimbox.folder / "token"
    token.write_text(SECRET + "\n")
    token.chmod(0o600)
    up = kimbox("--json", "up", "--set", "memory=640MiB")
    lines = up.stderr.splitlines()
    first_done = next(n for n, line in enumerate(lines) if line.startswith("first  | booting first: "))
    second_begins = next(n for n, line in enumerate(lines) if line.startswith("second | "))
    assert first_done < second_begins, up.stderr
    assert ["ready"] * 3 == [box["state"] for box in kimbox.json("status")["boxes"]]
    assert ["memory=640MiB"] == kimbox.json("status", "second")["settings"]
    kib = int(kimbox.sh("second", "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
    assert 512 << 10 < kib < 640 << 10
    assert f"{HARD}\n{SECRET}\n{LONG}\n" * 5 == kimbox.sh("first", SHOW)
    assert "0\n600 root\n0\n" == kimbox.sh("first", SEARCH)
    assert f"\n\n{LONG}\n" == kimbox.sh("second", 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG"')
    stored = [path for path in kimbox.home.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
    assert [] == [path for path in stored if b"s3cr3t" in path.read_bytes()]
    each_reaches_the_others(kimbox)
    nothing_else_reaches_them(kimbox)
    helpers_that_are_killed_start_again(kimbox)
    each_reaches_the_others(kimbox)
    two_have_a_screen(kimbox)
    what_listens_is_forwarded(kimbox, 8888)
    what_listens_is_forwarded(kimbox, 88)
    kimbox("suspend", "second")
    until("its forwards are gone", lambda: not is_locked(Machine("second").folder / forwarding.LOCK))
    kimbox("resume", "second")
    each_reaches_the_others(kimbox)
    os.kill(kimbox.json("status", "second")["pid"], signal.SIGKILL)
    kimbox("up", "second", "--boot", "resnap")
    each_reaches_the_others(kimbox)
    what_listens_is_forwarded(kimbox, 8888)
    assert "box-has-secrets" == kimbox.json("suspend", "first", check=False)["code"]
    halted = kimbox.json("halt")["boxes"]
    assert [(name, "halted") for name in reversed(BOXES)] == [(box["name"], box["state"]) for box in halted]
    for name in BOXES:
        lock = Machine(name).folder / forwarding.LOCK
        until("its forwards are gone", lambda lock=lock: not is_locked(lock))
        assert not (Machine(name).folder / forwarding.STATE).exists()
    kimbox("destroy", "-y")
    assert ["absent"] * 3 == [box["state"] for box in kimbox.json("status")["boxes"]]


def each_reaches_the_others(kimbox: Kimbox) -> None:
    """By name and over the network, which `status` shows."""
    for box in BOXES:
        answer = kimbox.sh(box, GREETINGS.format(others=" ".join(other for other in BOXES if other != box)))
        assert re.fullmatch(GREETED, answer), answer
        status = kimbox.json("status", box)
        [network] = status["networks"]
        assert ("lan", BOXES, True) == (network["name"], network["addresses"], network["is_up"])
        assert [] == status["problems"]


def nothing_else_reaches_them(kimbox: Kimbox) -> None:
    """No port of the host is open but those for ssh, and another user cannot enter the folder with the sockets."""
    for box in BOXES:
        status, folder = kimbox.json("status", box), Machine(box).folder
        listening = run.run(["ss", "-Hltunp"]).stdout.splitlines()
        own = [line.split()[4] for line in listening if f"pid={status['pid']}," in line]
        assert [f"127.0.0.1:{status['ssh_port']}"] == own
        [socket_path] = folder.glob("network-lan-*")
        assert 0o700 == folder.stat().st_mode & 0o777
        if os.geteuid() == 0:  # only root can be another user
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", SEND]
            assert "Permission denied" in run.run([*words, socket_path.name], cwd=folder, check=False).stderr


def helpers_that_are_killed_start_again(kimbox: Kimbox) -> None:
    """The programs of the network and of the forwards. QEMU and the guests run on."""
    for program in (str(PORT), forwarding.__name__):
        killed = {box: process_of(box, program) for box in BOXES}
        assert all(killed.values())
        for box, pid in killed.items():
            os.kill(pid, signal.SIGKILL)
            until("it runs again", lambda each=(box, program), pid=pid: process_of(*each) not in (0, pid))
    until("no box has a problem", lambda: all(kimbox.json("status", box)["problems"] == [] for box in BOXES))


def process_of(box: str, program: str) -> int:
    """The process that runs a program for a box; 0 if it does not run."""
    folder = Machine(box).folder
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_text().split("\0")
            is_of_box = (entry / "cwd").readlink() == folder or argv[-2:] == [box, ""]
            if argv[0] == sys.executable and program in argv and is_of_box:
                return int(entry.name)
    return 0


def what_listens_is_forwarded(kimbox: Kimbox, port: int) -> None:
    """A program on 127.0.0.1 of a guest is reached on 127.0.0.1 of the host until it ends. `port`: of the guest."""
    listen = f"systemd-socket-activate -l 127.0.0.1:{port} --accept --inetd echo hello"
    kimbox.sh("second", f"sudo systemd-run -q --unit listen-{port} -p Type=exec {listen}")

    def forwards() -> dict[str, int]:
        return dict(kimbox.json("status", "second")["auto_forwards"])

    until("the port is forwarded", lambda: str(port) in forwards())
    found = forwards()
    assert {str(port)} == set(found)
    host = found[str(port)]
    assert host >= 1024
    with socket.create_connection(("127.0.0.1", host), timeout=60) as connection:
        assert b"hello\n" == connection.recv(6)
    kimbox.sh("second", f"sudo systemctl stop listen-{port}")
    until("the forward has ended", lambda: forwards() == {})
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", host), timeout=60):
        pass


def two_have_a_screen(kimbox: Kimbox) -> None:
    """At its socket, VNC (RFC 6143) and SPICE answer. A box without xauth lets no programs open windows elsewhere."""
    for box, greeting in (("first", b"RFB 003.008"), ("second", b"REDQ")):
        folder = os.open(kimbox.machine(box).folder, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as screen:
            screen.settimeout(60)
            screen.connect(f"/proc/self/fd/{folder}/display.sock")
            if box == "second":  # SPICE: the client begins, with a link message for the main channel
                screen.send(b"REDQ" + struct.pack("<IIIIBBIII", 2, 2, 18, 0, 1, 0, 0, 0, 18))
            assert greeting == screen.recv(len(greeting))
        os.close(folder)
        assert str(kimbox.json("view", box)["socket"]).endswith("/display.sock")
    screens.shows_its_guest(kimbox, "first")
    assert "x11forwarding no\n" == kimbox.sh("first", "sudo /usr/sbin/sshd -T | grep ^x11forwarding")
