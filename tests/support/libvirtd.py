"""A libvirtd for tests, started and ended by hand: machines that run tests have no systemd, and no business with it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimbox import run
from kimbox.drivers.vagrant.libvirt import virsh

#: What libvirtd needs to run guests as root, and to leave their files to them.
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
SETTINGS = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\n'

#: libvirtd looks for this account, which the Debian package of the daemon alone does not make.
ACCOUNT = "libvirt-qemu"

START_S = 60.0


def why_not() -> str | None:
    """Why no libvirtd can be had here."""
    lacks = [name for name in ("vagrant", "libvirtd", "virsh", "dnsmasq", "iptables") if not run.which(name)]
    if lacks:
        return f"there is no {', '.join(lacks)} here; `script/bootstrap test` brings it"
    if not answers() and os.geteuid() != 0:
        return "no libvirtd answers, and only root may start one"
    return None


def answers() -> bool:
    """Whether a libvirtd answers this user."""
    return virsh("version", check=False).ok


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """A libvirtd that answers: the one that is there, or one that ends with its networks. Skips where there is none."""
    if why := why_not():
        pytest.skip(why)
    if answers():
        yield
        return
    _make_account()
    is_ours = not QEMU_CONF.exists()
    if is_ours:
        QEMU_CONF.parent.mkdir(exist_ok=True)
        QEMU_CONF.write_text(SETTINGS)
    pid_file = folder / "libvirtd.pid"
    ended = run.detach(["libvirtd", "--pid-file", str(pid_file)], log=folder / "libvirtd.log")
    try:
        deadline = time.monotonic() + START_S
        while not answers():
            assert ended() is None, (folder / "libvirtd.log").read_text()
            assert time.monotonic() < deadline, "libvirtd does not answer"
            time.sleep(0.1)
        yield
    finally:
        for network in virsh("net-list", "--name", check=False).stdout.split():
            virsh("net-destroy", network, check=False)
        if ended() is None:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
            deadline = time.monotonic() + START_S
            while ended() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        if is_ours:
            QEMU_CONF.unlink()


def _make_account() -> None:
    try:
        grp.getgrnam(ACCOUNT)
    except KeyError:
        run.run(["groupadd", "--system", ACCOUNT])
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        run.run(["useradd", "--system", "--gid", ACCOUNT, "--home-dir", "/nonexistent", "--no-create-home", ACCOUNT])


def inventory() -> dict[str, list[str]]:
    """Domains, networks and volumes that libvirt has."""
    volumes = virsh("vol-list", "default", check=False)
    return {
        "domains": sorted(virsh("list", "--all", "--name").stdout.split()),
        "networks": sorted(virsh("net-list", "--all", "--name").stdout.split()),
        "volumes": sorted(line.split()[0] for line in volumes.stdout.splitlines() if line.strip()),
    }
