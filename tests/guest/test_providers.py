"""The same tests with every provider: QEMU, and real Vagrant with real libvirt. Each provider has one machine."""

from __future__ import annotations

import contextlib
import http.client
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
from conftest import PROGRAM_PAUSE_S, Kimbox, is_given_back, until

from kimbox import run
from kimbox.drivers import accelerator, names
from kimbox.drivers.vagrant import libvirt

pytestmark = pytest.mark.guest

#: Those that run machines on this host.
PROVIDERS = ("qemu", "vagrant")

SPEC = """\
boot: resnap
resnap: {keep: nothing}
forwards: [{guest: 8080, host: auto}]
repositories: {setup: {url: ./setup}}
provision: [{name: hello, script: "date >/etc/hello"}]
probes: [{description: "hello is there", script: "test -s /etc/hello"}]
"""


@attrs.frozen
class Rig:
    """A running box, and the inventory of libvirt before its start (empty for QEMU)."""

    kimbox: Kimbox
    provider: str
    name: str
    before: dict[str, list[str]]

    def sh(self, script: str) -> str:
        return self.kimbox.sh(self.name, script)

    def state(self) -> str:
        return str(self.kimbox.json("status", self.name)["state"])

    def served(self) -> str:
        """Returns a file that the guest serves on its port 8080, downloaded through the forwarded port."""
        self.sh("pgrep -x busybox >/dev/null || busybox httpd -p 8080 -h /etc")
        port = int(self.kimbox.json("status", self.name)["forwards"]["8080"])
        answers: list[str] = []

        def has_answered() -> bool:
            try:  # with Vagrant, a separate ssh process forwards the port, and needs time to start
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/from-setup", timeout=60) as answer:
                    answers.append(bytes(answer.read()).decode())
            except (OSError, http.client.HTTPException):  # or another program has the port of a guest that restarts
                return False
            return True

        until("the answer of the guest's web server", has_answered, limit_s=120)
        return answers[0]

    def boot_id(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id")


#: A QEMU of kimbox is what most other tests have.
RUN = [pytest.param("qemu", marks=pytest.mark.soak), "vagrant"]


@pytest.fixture(scope="module", params=RUN)
def rig(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A box of one provider. With Vagrant, two `up` are killed before, so that `up` must repair their state."""
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
    """Writes the spec of a box with a setup repository, a step and a probe."""
    setup = kimbox.folder / "setup/setup"
    setup.parent.mkdir()
    setup.write_text("#!/bin/sh\necho hello >/etc/from-setup\n")
    setup.chmod(0o755)
    kimbox.spec(name, SPEC + more)


def interrupt(kimbox: Kimbox, name: str, volume: str) -> None:
    """Starts `up` and kills it, and so its Vagrant, when the pool has a volume of the box whose name contains this."""
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
    exit_code = run.detach(
        [*argv, sys.executable, "-m", "kimbox", "up", "--provider", "vagrant"], log=kimbox.folder / "log"
    )

    def is_in_pool() -> bool:
        assert exit_code() is None, (kimbox.folder / "log").read_text()
        return any(other.startswith(names.domain(name)) and volume in other for other in libvirt.volumes())

    until(f"{volume} in libvirt's pool", is_in_pool)
    os.kill(int((kimbox.folder / "pid").read_text()), signal.SIGKILL)
    until("the end of the killed process", lambda: exit_code() is not None)
    until("the end of Vagrant", lambda: working_in(str(kimbox.machine(name).folder)) == [], limit_s=30)


def test_up_makes_it_ready(rig: Rig) -> None:
    """`up` makes the box ready. `status` has the same members as `list`, and names the provider."""
    facts = rig.kimbox.json("status")
    assert (rig.provider, "ready") == (facts["provider"], facts["state"])
    assert facts["provenance"]["provisioned"]["by"] == "first"
    assert facts["manifest"]
    assert facts["failure"] is None
    listed = {box["name"]: box for box in rig.kimbox.json("list")["boxes"]}
    assert set(facts) == set(listed[rig.name])
    assert "ready" == rig.kimbox.json("up")["before"]


def test_another_provider_is_refused(rig: Rig) -> None:
    """A box that exists cannot be started with another provider."""
    other = next(name for name in PROVIDERS if name != rig.provider)
    refused = rig.kimbox.json("up", "--provider", other, check=False)
    assert (5, True) == (refused["exit_code"], f"is run by {rig.provider}, not by {other}" in refused["message"])


def test_exec_and_ssh(rig: Rig) -> None:
    """Output and exit status of a command pass through. The host name and network are set. Setup and step have run."""
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


def test_a_snapshot_restores_everything(rig: Rig) -> None:
    """Later changes of root and /persistent are removed. The guest continues without a boot, with the right time."""
    boot = rig.boot_id()
    assert {"name": rig.name, "snapshot": "one", "state": "ready"} == rig.kimbox.json("snapshot", "save", "one")
    rig.sh("sudo touch /gone /persistent/gone; sync")
    refused = rig.kimbox.json("snapshot", "save", "one", check=False)
    assert (5, True) == (refused["exit_code"], "has a snapshot one already" in refused["message"])
    assert "ready" == rig.kimbox.json("snapshot", "restore", "one")["state"]
    assert (boot, "") == (rig.boot_id(), rig.sh("ls -d /gone /persistent/gone 2>/dev/null || true"))
    assert abs(int(rig.sh("date +%s")) - time.time()) < 30
    assert "hello\n" == rig.served()
    assert ["one"] == rig.kimbox.json("snapshot", "list")["snapshots"]
    rig.kimbox("snapshot", "delete", "one")
    assert [] == rig.kimbox.json("snapshot", "list")["snapshots"]
    refused = rig.kimbox.json("snapshot", "restore", "one", check=False)
    assert (5, True) == (refused["exit_code"], "has no snapshot one" in refused["message"])


def test_suspend_and_resume(rig: Rig) -> None:
    """A suspended box runs no command. After `resume` it is in the same boot, with its memory and the right time."""
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
    """After a reboot, the box has a new root that it has provisioned itself, and the same /persistent."""
    rig.sh("sudo touch /gone /persistent/kept; sync")
    assert "ready" == rig.kimbox.json("reload")["state"]
    facts = rig.kimbox.json("status")
    assert ("resnap", "resnap") == (facts["boot"], facts["provenance"]["provisioned"]["by"])
    assert "/persistent/kept\n" == rig.sh("ls -d /gone /persistent/kept 2>/dev/null || true")
    assert "hello\n" == rig.sh("test -s /etc/hello && cat /etc/from-setup")
    assert "hello\n" == rig.served()


def test_halt(rig: Rig) -> None:
    """A halted box can be halted again, packaged, saved and restored. `exec` reports that the box is halted."""
    halted = rig.kimbox.json("halt")
    assert ("halted", "ready") == (halted["state"], halted["before"])
    assert "halted" == rig.kimbox.json("halt")["before"] == rig.state()
    refused = rig.kimbox.json("exec", "--", "true", check=False)
    assert (5, True) == (refused["exit_code"], "the box is halted" in refused["message"])
    packaged = rig.kimbox.json("package", "--format", "qcow2", "--output", "out")
    assert ("machine", f"{rig.name}.qcow2") == (packaged["from"], Path(packaged["files"][0]).name)
    assert [] == packaged["cleaned"]  # every boot used the snapshot, so that the root itself is unchanged
    assert "halted" == rig.kimbox.json("snapshot", "save", "off")["state"]
    assert "halted" == rig.kimbox.json("snapshot", "restore", "off")["state"]


def test_destroy_leaves_nothing(rig: Rig) -> None:
    """Folder, record and snapshots are removed. libvirt has no domain, network or volume that it did not have before.

    All ssh connections of `exec` to earlier boots of the box have ended.
    """
    folder = str(rig.kimbox.machine(rig.name).folder)
    (port,) = rig.kimbox.json("status")["forwards"].values()
    rig.kimbox("destroy", "-y", rig.name)
    assert is_given_back(int(port), rig.kimbox.home)
    assert "absent" == rig.state()
    until("the end of every connection", lambda: working_in(folder) == [], limit_s=90)
    assert not rig.kimbox.machine(rig.name).folder.exists()
    if rig.provider == "vagrant":
        # If an earlier run left its network, Vagrant removes it after the last machine that used it.
        after = libvirtd.inventory()
        assert {kind: set() for kind in after} == {kind: set(after[kind]) - set(rig.before[kind]) for kind in after}
        assert [] == list((rig.kimbox.home / "vagrant/boxes").glob("*"))


def working_in(folder: str) -> list[str]:
    """Returns the ids of processes whose working directory is this folder, also if it was removed."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).startswith(folder):
                processes.append(process.name)
    return processes


def test_plain_vagrant_makes_the_same_box(home: Path, tmp_path: Path) -> None:
    """Vagrant without kimbox, with a package and the rendered files, provisions the box and the new root of each boot.

    The scratch space is empty after a boot. A writable folder of the host is mounted at each boot.
    """
    kimbox = Kimbox(home, tmp_path)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/given").write_text("of the host")
    mounts = "mounts: [{location: shared, mount_point: /home/vagrant/shared, writable: true}]\n"
    write_spec(kimbox, "plain", "scratch: {size: 1GiB}\n" + mounts)
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
            change = "cd shared && sudo cp given taken && cat given"  # root, because libvirt does not map owners
            assert "of the host" == vagrant("ssh", "-c", change).strip()
            assert "of the host" == (tmp_path / "shared/taken").read_text()
            vagrant("reload")
            until(
                "the new root to be provisioned",
                lambda: holds("-s /etc/from-setup -a -s /etc/hello"),
                every_s=PROGRAM_PAUSE_S,
            )
            assert holds("-w /staging -a ! -e /gone -a ! -e /staging/gone -a -s shared/taken")
        finally:
            vagrant("destroy", "-f")
            (image,) = set(libvirtd.inventory()["volumes"]) - before  # Vagrant does not remove it
            libvirt.virsh("vol-delete", image, "--pool", "default")
