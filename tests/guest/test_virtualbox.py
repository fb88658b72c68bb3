"""A package for VirtualBox, behind the controllers that it presents. VirtualBox itself is not run."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from conftest import Kimbox, until

from kimbox import run

pytestmark = pytest.mark.guest

#: The machine that VirtualBox makes of an OVF: SATA, an Intel network card, nothing of virtio.
VIRTUALBOX = (
    "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "1", "-m", "1024",
    "-nodefaults", "-no-user-config", "-display", "none",
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
    console = tmp_path / "console"
    ended = run.detach(
        [
            *VIRTUALBOX, "-drive", f"if=none,id=disk,format=qcow2,file={overlay}",
            "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22", "-device", "e1000,netdev=net,romfile=",
            "-smbios", f"type=11,value=io.systemd.credential:kimbox.authorized_key={public}",
            "-serial", f"file:{console}", "-pidfile", tmp_path / "pid",
            "-monitor", f"unix:{tmp_path}/monitor,server=on,wait=off",
        ],
        log=tmp_path / "qemu.log",
    )  # fmt: skip
    try:
        until("the forwarded port", lambda: bool(_port(tmp_path)) or ended() is not None, limit_s=60)
        ssh = [
            "ssh",
            "-p",
            str(_port(tmp_path)),
            "-i",
            str(key),
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "BatchMode=yes",
        ]
        ssh += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5", "vagrant@127.0.0.1"]
        look = "lsblk -ndo TRAN; basename $(readlink /sys/class/net/eth0/device/driver); uname -r"
        said: list[str] = []

        def answers() -> bool:
            done = run.run([*ssh, look], check=False, timeout_s=120)
            said[:] = done.stdout.split()
            return done.ok or ended() is not None

        until("ssh through the e1000 card", answers, limit_s=240)
        assert ["sata", "e1000"] == said[:2], console.read_text(errors="replace")[-2000:]
        assert "cloud" not in said[2]
    finally:
        run.run(["kill", "-KILL", (tmp_path / "pid").read_text().strip()], check=False)
        until("the end of QEMU", lambda: ended() is not None, limit_s=60)


def _port(folder: Path) -> int | None:
    """The port of the host that QEMU has chosen for the guest's ssh, as its monitor tells."""
    import socket

    with socket.socket(socket.AF_UNIX) as monitor:
        try:
            monitor.settimeout(10)
            monitor.connect(str(folder / "monitor"))
            monitor.sendall(b"info usernet\n")
            text = b""
            while b"HOST_FORWARD" not in text:
                text += monitor.recv(4096)
            text += monitor.recv(4096) if not text.rstrip().endswith(b"22") else b""
        except OSError:
            return None
    found = re.search(rb"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
    return int(found[1]) if found else None
