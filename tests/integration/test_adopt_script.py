"""provisioners/adopted: the programs that prepare a guest whose image kimbox did not build, with its real shell."""

from __future__ import annotations

import shutil
from pathlib import Path

import fakeguest
import pytest
from fakeguest import FakeGuest, needs_namespace

from kimbox import paths

pytestmark = needs_namespace

plain = fakeguest.guest  # a fixture


ADOPT = "/usr/lib/kimbox/adopt"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDYeIl0r0lFR1rU7XcF4xXvjTyFQyDkDVVDDhTOkGVJE root@a"


def write(guest: FakeGuest, name: str, body: str) -> None:
    """Puts a program in place of one of the system."""
    path = guest.path("/usr/local/sbin") / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def guest(plain: FakeGuest) -> FakeGuest:
    """A guest with the programs of kimbox, an account, systemd, and no file of the host in /etc that is written."""
    guest = plain
    shutil.copytree(
        paths.provisioners_dir() / "adopted/root/usr/lib/kimbox", guest.path("/usr/lib/kimbox"), dirs_exist_ok=True
    )
    for name in ("gitconfig", "systemd", "ssh"):
        guest.path(f"/etc/{name}").unlink(missing_ok=True)
    for folder in ("/etc/systemd/system", "/etc/ssh", "/run/systemd/system"):
        guest.path(folder).mkdir(parents=True)
    write(guest, "id", '[ "$1" = vagrant ] || echo 0')
    write(guest, "sudo", "exit 1")
    return guest


def without(guest: FakeGuest, *names: str) -> None:
    """Removes programs from /usr/bin of the guest."""
    folder = guest.path("/usr/bin")
    folder.unlink()
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in names:
            (folder / program.name).symlink_to(f"/host/usr/bin/{program.name}")


def test_it_enables_the_units_and_starts_them(guest: FakeGuest) -> None:
    """The last call only starts provisiond. A second run changes nothing more."""
    for _ in range(2):
        done = guest.run(ADOPT, "git")
        assert (0, "") == (done.code, done.stderr)
    calls = guest.path("/run/systemctl.log").read_text().splitlines()
    enabled = "--quiet enable kimbox-early.service provisiond.service"
    assert [enabled, "restart kimbox-early.service", "--no-block restart provisiond.service"] == calls[-3:]
    assert "[include]\n\tpath = /var/lib/kimbox/gitconfig\n" == guest.path("/etc/gitconfig").read_text()
    assert [] == list(guest.path("/etc/systemd/system").iterdir())
    assert guest.path("/persistent/kimbox").is_dir()


def test_a_system_with_rpm_packages(guest: FakeGuest) -> None:
    """dnf installs git, and the name ssh.service leads to sshd.service."""
    without(guest, "git", "apt-get", "dnf", "yum", "zypper")
    write(guest, "dnf", 'echo "$*" >/tmp/dnf')
    unit = "/usr/lib/systemd/system/sshd.service"
    write(guest, "systemctl", f'case $1 in cat) exit 1 ;; show) echo {unit} ;; esac\necho "$*" >>/run/systemctl.log')
    done = guest.run(ADOPT, "git")
    assert (0, "") == (done.code, done.stderr)
    assert "-q -y install git-core\n" == guest.path("/tmp/dnf").read_text()
    assert unit == str(guest.path("/etc/systemd/system/ssh.service").readlink())
    guest.path("/tmp/dnf").unlink()
    assert 0 == guest.run(ADOPT).code  # without repositories no git is needed
    assert not guest.path("/tmp/dnf").exists()


@pytest.mark.parametrize(
    ("removed", "account", "reason"),
    [
        (("flock", "mkfifo"), True, "the image lacks programs that kimbox needs: flock mkfifo"),
        (("git", "apt-get", "dnf", "yum", "zypper"), True, "has no git, and there is neither apt-get nor dnf"),
        ((), False, "cloud-init has not made the account vagrant"),
    ],
)
def test_what_the_guest_lacks_is_named(guest: FakeGuest, removed: tuple[str, ...], account: bool, reason: str) -> None:
    """And no unit is enabled."""
    without(guest, *removed)
    if not account:
        write(guest, "id", "exit 1")
    done = guest.run(ADOPT, "git")
    assert done.code != 0
    assert reason in done.stderr
    assert not guest.path("/run/systemctl.log").exists()


def test_a_git_that_cannot_be_installed(guest: FakeGuest) -> None:
    """The reason of the program is in the output, too."""
    without(guest, "git", "apt-get")
    write(guest, "apt-get", "echo 'E: no network' >&2; exit 100")
    done = guest.run(ADOPT, "git")
    assert (1, True) == (done.code, "E: no network" in done.stderr)
    assert "git cannot be installed" in done.stderr


def test_each_start_is_reported(guest: FakeGuest) -> None:
    """With the host key, and that cloud-init has set the guest up."""
    guest.path("/etc/ssh/ssh_host_ed25519_key.pub").write_text(f"{KEY}\n")
    assert 0 == guest.run("/usr/lib/kimbox/early").code
    assert [
        {"event": "booting", "mode": "keep", "guest": "cloud-init"},
        {"event": "hostkey", "key": KEY},
        {"event": "sshd"},
    ] == guest.events()
