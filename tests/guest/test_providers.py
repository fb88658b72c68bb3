"""The same box under every provider: QEMU, and real Vagrant with real libvirt. One machine each for the whole table."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import attrs
import libvirtd
import pytest
from conftest import ASK_S, Kimbox, is_given_back, until

from kimbox import run
from kimbox.drivers import accelerator
from kimbox.drivers.registry import NAMES
from kimbox.drivers.vagrant import libvirt, names

pytestmark = pytest.mark.guest

SPEC = """\
boot: resnap
forwards: [{guest: 8080, host: auto}]
repositories: {setup: {url: ./setup}}
provision: [{name: hello, script: "date >/etc/hello"}]
probes: [{description: "hello is there", script: "test -s /etc/hello"}]
"""


@attrs.frozen
class Rig:
    """A box that runs, and what libvirt had before it, where libvirt is at work."""

    kimbox: Kimbox
    provider: str
    name: str
    before: dict[str, list[str]]

    def sh(self, script: str) -> str:
        return self.kimbox.sh(self.name, script)

    def state(self) -> str:
        return str(self.kimbox.json("status", self.name)["state"])

    def served(self) -> str:
        """What the guest serves on its port 8080, as this host gets it through the forwarded port."""
        self.sh("pgrep -x busybox >/dev/null || busybox httpd -p 8080 -h /etc")
        port = int(self.kimbox.json("status", self.name)["forwards"]["8080"])
        said: list[str] = []

        def answers() -> bool:
            try:  # under Vagrant an ssh of its own forwards it, which has just been started
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/from-setup", timeout=60) as answer:
                    said.append(bytes(answer.read()).decode())
            except OSError:
                return False
            return True

        until("what the guest serves", answers, limit_s=120)
        return said[0]

    def boot_id(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id")


@pytest.fixture(scope="module", params=NAMES)
def rig(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A box of one provider. The first tries under Vagrant are killed on their way: `up` has something to mend."""
    provider = str(request.param)
    kimbox = Kimbox(home, tmp_path_factory.mktemp(provider))
    name = f"table-{provider}"
    write_spec(kimbox, name)
    with contextlib.ExitStack() as stack:
        before = {}
        if provider == "vagrant":
            stack.enter_context(libvirtd.running(kimbox.folder))
            before = libvirtd.inventory()
            interrupt(kimbox, name, libvirt.IMAGE_MARK)
            interrupt(kimbox, name, f"{name}.img")
        kimbox("up", "--provider", provider)
        yield Rig(kimbox, provider, name, before)
        kimbox("destroy", "-y", check=False)


def write_spec(kimbox: Kimbox, name: str, more: str = "") -> None:
    """A box with a setup repository, a step and a probe."""
    setup = kimbox.folder / "setup/setup"
    setup.parent.mkdir()
    setup.write_text("#!/bin/sh\necho hello >/etc/from-setup\n")
    setup.chmod(0o755)
    kimbox.spec(name, SPEC + more)


def interrupt(kimbox: Kimbox, name: str, volume: str) -> None:
    """Kills kimbox, and so the Vagrant that it runs, once a volume of the box whose name holds this is in the pool."""
    settings = {"KIMBOX_HOME": str(kimbox.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = 'echo $$ >pid; exec "$@"'
    argv = [
        "env",
        "-C",
        kimbox.folder,
        *(f"{key}={value}" for key, value in settings.items()),
        "sh",
        "-c",
        script,
        "sh",
    ]
    ended = run.detach(
        [*argv, sys.executable, "-m", "kimbox", "up", "--provider", "vagrant"], log=kimbox.folder / "log"
    )

    def there() -> bool:
        assert ended() is None, (kimbox.folder / "log").read_text()
        return any(one.startswith(names.domain(name)) and volume in one for one in libvirt.volumes())

    until(f"{volume} in libvirt's pool", there)
    os.kill(int((kimbox.folder / "pid").read_text()), signal.SIGKILL)
    until("the end of what was killed", lambda: ended() is not None)
    until("the end of Vagrant", lambda: working_in(str(kimbox.machine(name).folder)) == [], limit_s=30)


def test_up_makes_it_ready(rig: Rig) -> None:
    """The same states, facts and words of status; what runs it is named."""
    facts = rig.kimbox.json("status")
    assert (rig.provider, "ready") == (facts["provider"], facts["state"])
    assert facts["provenance"]["provisioned"]["by"] == "first"
    assert facts["manifest"]
    assert facts["failure"] is None
    listed = {box["name"]: box for box in rig.kimbox.json("list")["boxes"]}
    assert set(facts) == set(listed[rig.name])
    assert "ready" == rig.kimbox.json("up")["before"]


def test_another_provider_is_refused(rig: Rig) -> None:
    """A box belongs to who runs it."""
    other = next(name for name in NAMES if name != rig.provider)
    refused = rig.kimbox.json("up", "--provider", other, check=False)
    assert (5, True) == (refused["exit_code"], f"is run by {rig.provider}, not by {other}" in refused["message"])


def test_exec_and_ssh(rig: Rig) -> None:
    """A command's output and exit status are its own; the box has its name and a network; setup and step have run."""
    assert f"{rig.name}\n" == rig.sh("hostname")
    assert "hello\n" == rig.sh("test -s /etc/hello && cat /etc/from-setup")
    assert 7 == rig.kimbox("exec", rig.name, "--", "sh", "-c", "exit 7", check=False).code
    assert "vagrant\n" == rig.kimbox("ssh", rig.name, "--", "id -un").stdout
    assert rig.sh("cat /etc/resolv.conf").startswith("nameserver ")


def test_a_forward_reaches_the_guest(rig: Rig) -> None:
    """A port of the spec answers on 127.0.0.1 of the host, and on no other address."""
    assert "hello\n" == rig.served()
    port = int(rig.kimbox.json("status")["forwards"]["8080"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 30)


def test_a_snapshot_brings_everything_back(rig: Rig) -> None:
    """What was changed since is gone, on root and on /persistent; the guest goes on without a boot, its clock right."""
    boot = rig.boot_id()
    assert {"name": rig.name, "snapshot": "one", "state": "ready"} == rig.kimbox.json("snapshot", "save", "one")
    rig.sh("sudo touch /gone /persistent/gone; sync")
    again = rig.kimbox.json("snapshot", "save", "one", check=False)
    assert (5, True) == (again["exit_code"], "has a snapshot one already" in again["message"])
    assert "ready" == rig.kimbox.json("snapshot", "restore", "one")["state"]
    assert (boot, "") == (rig.boot_id(), rig.sh("ls -d /gone /persistent/gone 2>/dev/null || true"))
    assert abs(int(rig.sh("date +%s")) - time.time()) < 30
    assert "hello\n" == rig.served()
    assert ["one"] == rig.kimbox.json("snapshot", "list")["snapshots"]
    rig.kimbox("snapshot", "delete", "one")
    assert [] == rig.kimbox.json("snapshot", "list")["snapshots"]
    gone = rig.kimbox.json("snapshot", "restore", "one", check=False)
    assert (5, True) == (gone["exit_code"], "has no snapshot one" in gone["message"])


def test_suspend_and_resume(rig: Rig) -> None:
    """A suspended box answers nothing and says so; it goes on in the same boot, memory and all, its clock right."""
    look = "cat /proc/sys/kernel/random/boot_id /dev/shm/kept"
    before = rig.sh(f"echo kept >/dev/shm/kept; {look}")
    rig.kimbox("suspend")
    status = rig.kimbox.json("status")
    assert ("suspended", None) == (status["state"], status["pid"])
    refused = rig.kimbox.json("exec", rig.name, "--", "true", check=False)
    assert (5, True) == (refused["exit_code"], "resume" in refused["hint"])
    assert "ready" == rig.kimbox.json("resume")["state"]
    *after, now = rig.sh(f"{look}; date +%s").splitlines()
    assert before.splitlines() == after
    assert abs(int(now) - time.time()) < 30
    assert "hello\n" == rig.served()


def test_resnap(rig: Rig) -> None:
    """A reboot gives a new root, provisioned by itself, and keeps /persistent."""
    rig.sh("sudo touch /gone /persistent/kept; sync")
    assert "ready" == rig.kimbox.json("reload")["state"]
    facts = rig.kimbox.json("status")
    assert ("resnap", "resnap") == (facts["boot"], facts["provenance"]["provisioned"]["by"])
    assert "/persistent/kept\n" == rig.sh("ls -d /gone /persistent/kept 2>/dev/null || true")
    assert "hello\n" == rig.sh("test -s /etc/hello && cat /etc/from-setup")
    assert "hello\n" == rig.served()


def test_halt(rig: Rig) -> None:
    """A halted box is halted, however often; it can be kept as it is; ssh says what to do."""
    halted = rig.kimbox.json("halt")
    assert ("halted", "ready") == (halted["state"], halted["before"])
    assert "halted" == rig.kimbox.json("halt")["before"] == rig.state()
    refused = rig.kimbox.json("exec", "--", "true", check=False)
    assert (5, True) == (refused["exit_code"], "the box is halted" in refused["message"])
    packaged = rig.kimbox.json("package", "--format", "qcow2", "--output", "out")
    assert ("machine", f"{rig.name}.qcow2") == (packaged["from"], Path(packaged["files"][0]).name)
    assert [] == packaged["cleaned"]  # every boot was on the snapshot: the root is as it was built
    assert "halted" == rig.kimbox.json("snapshot", "save", "off")["state"]
    assert "halted" == rig.kimbox.json("snapshot", "restore", "off")["state"]


def test_destroy_leaves_nothing(rig: Rig) -> None:
    """Folder and record are gone, snapshots and all; libvirt has the domains, networks, volumes of before.

    A connection that `exec` made in the box's many lives has ended, too.
    """
    folder = str(rig.kimbox.machine(rig.name).folder)
    (port,) = rig.kimbox.json("status")["forwards"].values()
    rig.kimbox("destroy", "-y", rig.name)
    assert is_given_back(int(port), rig.kimbox.home)
    assert "absent" == rig.state()
    until("the end of every connection", lambda: working_in(folder) == [], limit_s=90)
    assert not rig.kimbox.machine(rig.name).folder.exists()
    if rig.provider == "vagrant":
        assert rig.before == libvirtd.inventory()
        assert [] == list((rig.kimbox.home / "vagrant/boxes").glob("*"))


def working_in(folder: str) -> list[str]:
    """Processes whose folder is this one, there or not any more."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).startswith(folder):
                found.append(process.name)
    return found


def test_plain_vagrant_makes_the_same_box(home: Path, tmp_path: Path) -> None:
    """From a package and what was rendered, without kimbox: provisioned, and a new root, provisioned, at each boot.

    Its scratch space is empty then, too.
    """
    kimbox = Kimbox(home, tmp_path)
    write_spec(kimbox, "plain", "scratch: {size: 1GiB}\n")
    kimbox("lock")
    kimbox("package", "--output", "vagrant")
    kimbox("render", "--box", "vagrant/plain-libvirt.box")
    driver = "kvm" if accelerator.find().name == "kvm" else "qemu"
    env = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1", "KIMBOX_LIBVIRT_DRIVER": driver}

    def vagrant(*words: str, check: bool = True) -> str:
        return run.run(["vagrant", *words], cwd=tmp_path / "vagrant", env=env, timeout_s=900, check=check).stdout

    def holds(test: str) -> bool:
        return "yes" == vagrant("ssh", "-c", f"test {test} && echo yes", check=False).strip()

    with libvirtd.running(tmp_path):
        before = set(libvirtd.inventory()["volumes"])
        try:
            vagrant("up", "--provider=libvirt")
            assert "hello" == vagrant("ssh", "-c", "test -s /etc/hello && cat /etc/from-setup").strip()
            assert "saved_entry=resnap" in vagrant("ssh", "-c", "sudo grub-editenv /boot/grub/grubenv list")
            assert (
                "/staging" == vagrant("ssh", "-c", "sudo touch /gone; touch $TMPDIR/gone; sync; echo $TMPDIR").strip()
            )
            vagrant("reload")
            until("the new root to be provisioned", lambda: holds("-s /etc/from-setup -a -s /etc/hello"), every_s=ASK_S)
            assert holds("-w /staging -a ! -e /gone -a ! -e /staging/gone")
        finally:
            vagrant("destroy", "-f")
            (image,) = set(libvirtd.inventory()["volumes"]) - before  # Vagrant leaves it there
            libvirt.virsh("vol-delete", image, "--pool", "default")
