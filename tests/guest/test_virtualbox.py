"""A package for VirtualBox, booted in QEMU with the controllers of VirtualBox. VirtualBox itself does not run.

`script/test soak` runs it: it needs an image of its own, with Debian's ordinary kernel.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from pathlib import Path

import pytest
from conftest import Kimbox, until

from kimbox import run
from kimbox.drivers.accelerator import EMULATED_CPU
from kimbox.drivers.qemu import qmp

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: QEMU with the devices that VirtualBox creates from an OVF: SATA, an Intel network card, no virtio.
VIRTUALBOX = (
    "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,tb-size=256", "-cpu", EMULATED_CPU, "-smp", "1",
    "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none",
    "-device", "ahci,id=sata", "-device", "ide-hd,bus=sata.0,drive=disk",
)  # fmt: skip


def test_behind_the_controllers_of_virtualbox(kimbox: Kimbox, tmp_path: Path) -> None:
    """The VMDK of a box with Debian's ordinary kernel boots from SATA, and ssh answers through an e1000 card."""
    kimbox.spec("sata", "image: {packages: [linux-image-amd64]}\n")
    kimbox("build")
    kimbox("package", "--format", "ova")
    with tarfile.open(kimbox.folder / "sata.ova") as archive:
        assert b"E1000" in archive.extractfile("sata.ovf").read()  # type: ignore[union-attr]
        archive.extract("box-disk001.vmdk", tmp_path, filter="data")
    run.run(["qemu-img", "check", "-f", "vmdk", tmp_path / "box-disk001.vmdk"])
    key = tmp_path / "key"
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", key])
    overlay = tmp_path / "overlay"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "box-disk001.vmdk", "-F", "vmdk", overlay])
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    console, control = tmp_path / "console", tmp_path / "qmp.sock"
    exit_code = run.detach(
        [
            *VIRTUALBOX, "-drive", f"if=none,id=disk,format=qcow2,file={overlay}",
            "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22", "-device", "e1000,netdev=net,romfile=",
            "-smbios", f"type=11,value=io.systemd.credential:kimbox.authorized_key={public}",
            "-serial", f"file:{console}", "-pidfile", tmp_path / "pid",
            "-qmp", f"unix:{control},server=on,wait=off",
        ],
        log=tmp_path / "qemu.log",
    )  # fmt: skip
    try:
        ports: list[str] = []
        until("the forwarded port", lambda: bool(ports.extend(forwarded_ports(control)) or ports), limit_s=60)
        known = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known"]
        ssh = ["ssh", "-F", "none", "-p", ports[0], "-i", key, "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", *known]
        look = "lsblk -ndo TRAN; basename $(readlink /sys/class/net/eth0/device/driver); uname -r"
        words: list[str] = []

        def answers() -> bool:
            done = run.run([*ssh, "vagrant@127.0.0.1", look], check=False, timeout_s=120)
            words[:] = done.stdout.split()
            return done.ok or exit_code() is not None

        until("ssh through the e1000 card", answers, limit_s=900)
        assert ["sata", "e1000"] == words[:2], console.read_text(errors="replace")[-2000:]
        assert "cloud" not in words[2]
    finally:
        run.run(["kill", "-KILL", (tmp_path / "pid").read_text().strip()], check=False)
        until("the end of QEMU", lambda: exit_code() is not None, limit_s=60)


def forwarded_ports(control: Path) -> list[str]:
    """Returns the host port that QEMU forwards to the guest's ssh, in a list. It is empty before QEMU answers."""
    with contextlib.suppress(OSError, qmp.QmpError):
        answer = str(qmp.execute(control, "human-monitor-command", {"command-line": "info usernet"}))
        return re.findall(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", answer)
    return []
