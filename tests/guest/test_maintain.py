"""Maintain mode in a real guest: what is changed in the root stays, a kernel update keeps the resnap initramfs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Kimbox
from webfolder import serving

from kimbox import run
from kimbox.lock import apt

pytestmark = pytest.mark.guest

NAME = "maintained"

#: The host, as QEMU's user network shows it to the guest.
HOST = "10.0.2.2"


def download(package: str, version: str, folder: Path) -> Path:
    """A package of Debian trixie, by this machine's apt."""
    lines = [source.line().replace("deb ", "deb [trusted=yes] ", 1) for source in apt.sources("debian", "trixie", None)]
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "status").touch()
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run.run(["apt-get", *words, "-q", "update"])
    run.run(["apt-get", *words, "-q", "download", f"{package}={version}"], cwd=folder)
    (found,) = folder.glob("*.deb")
    return found


def test_a_kernel_update_in_maintain_mode_keeps_resnap(kimbox: Kimbox, tmp_path: Path) -> None:
    """The kernel's package is installed anew in the root: its initramfs resnaps, and GRUB starts it."""
    kimbox.spec(NAME, "boot: resnap\n")
    told = kimbox("up", "--boot", "maintain").stdout
    assert "maintain" in told
    status = kimbox.json("status")
    assert (status["state"], status["boot"], status["manifest"]) == ("ready", "maintain", None)
    assert "/dev/mapper/vagrant--pipeline-root / ext4 rw" in kimbox.sh(NAME, "cat /proc/mounts")
    assert "maintain mode" in kimbox.sh(NAME, "cat /run/motd.d/kimbox")
    assert kimbox.sh(NAME, "bash -lic 'echo $debian_chroot' 2>/dev/null") == "maintain\n"

    kimbox.sh(NAME, "sudo touch /changed-in-maintain; sudo systemctl start boot.mount")
    release = kimbox.sh(NAME, "uname -r").strip()
    version = kimbox.sh(NAME, f"dpkg-query -f '${{Version}}' -W linux-image-{release}")
    folder = tmp_path / "deb"
    folder.mkdir()
    deb = download(f"linux-image-{release}", version, folder)
    (folder / "kernel.deb").symlink_to(deb)
    before = kimbox.sh(NAME, f"stat -c %i-%Y /boot/initrd.img-{release}")
    with serving(folder) as port:
        kimbox.sh(NAME, f"busybox wget -q -O /var/tmp/kernel.deb http://{HOST}:{port}/kernel.deb")
    kimbox.sh(NAME, "sudo ln -sfn nowhere /boot/linux")
    kimbox.sh(NAME, "sudo apt-get install -q -y --reinstall /var/tmp/kernel.deb")
    assert kimbox.sh(NAME, f"stat -c %i-%Y /boot/initrd.img-{release}") != before
    assert kimbox.sh(NAME, "readlink /boot/linux") == f"linux-{release}\n"
    held = kimbox.sh(NAME, f"lsinitramfs /boot/initrd.img-{release}")
    assert re.search(r"^scripts/local-premount/resnap$", held, re.MULTILINE)

    kimbox("reload")
    assert kimbox.json("status")["boot"] == "resnap"
    kimbox.sh(NAME, "ls /changed-in-maintain; sudo touch /changed-in-resnap; sync")
    kimbox("reload")
    assert kimbox.sh(NAME, "ls -d /changed-* /run/motd.d 2>/dev/null || true") == "/changed-in-maintain\n"
    kimbox("destroy", "-y")
