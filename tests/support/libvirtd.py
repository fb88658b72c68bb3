"""A libvirtd for tests. It runs without systemd, because a host that runs tests may have none."""

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

#: Settings with which libvirtd runs guests as root and does not change the owner of their files.
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
SETTINGS = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\n'

#: An account that libvirtd requires. The Debian package of the daemon does not create it.
ACCOUNT = "libvirt-qemu"

#: Timeout of the start and of the end of libvirtd, in seconds.
START_S = 60.0


def why_not() -> str | None:
    """Returns the reason why libvirtd cannot run here, or None."""
    missing = [name for name in ("vagrant", "libvirtd", "virsh", "dnsmasq", "iptables") if not run.which(name)]
    if missing:
        return f"missing programs: {', '.join(missing)} (`script/bootstrap test` installs them)"
    if not answers() and os.geteuid() != 0:
        return "no libvirtd answers, and only root can start one"
    return None


def answers() -> bool:
    """Whether a libvirtd answers the current user."""
    return virsh("version", check=False).ok


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Provides a libvirtd that answers: the running one, or one that is stopped at the end with its networks.

    Skips the test if neither is possible.
    """
    if why := why_not():
        pytest.skip(why)
    if answers():
        yield
        return
    _make_account()
    creates_configuration = not QEMU_CONF.exists()
    if creates_configuration:
        QEMU_CONF.parent.mkdir(exist_ok=True)
        QEMU_CONF.write_text(SETTINGS)
    pid_file = folder / "libvirtd.pid"
    exit_code = run.detach(["libvirtd", "--pid-file", str(pid_file)], log=folder / "libvirtd.log")
    try:
        deadline = time.monotonic() + START_S
        while not answers():
            assert exit_code() is None, (folder / "libvirtd.log").read_text()
            assert time.monotonic() < deadline, "libvirtd does not answer"
            time.sleep(0.1)
        yield
    finally:
        for network in virsh("net-list", "--name", check=False).stdout.split():
            virsh("net-destroy", network, check=False)
        if exit_code() is None:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
            deadline = time.monotonic() + START_S
            while exit_code() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        if creates_configuration:
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
    """Returns the names of libvirt's domains, networks and volumes."""
    volumes = virsh("vol-list", "default", check=False)
    return {
        "domains": sorted(virsh("list", "--all", "--name").stdout.split()),
        "networks": sorted(virsh("net-list", "--all", "--name").stdout.split()),
        "volumes": sorted(line.split()[0] for line in volumes.stdout.splitlines() if line.strip()),
    }
