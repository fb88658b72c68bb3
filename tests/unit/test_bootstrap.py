"""script/bootstrap prints which packages are missing and why, and installs only these."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from kimbox import run

ROOT = Path(__file__).resolve().parents[2]

#: Programs that the script can use on every host.
BASICS = ["awk", "bash", "cat", "cut", "dirname", "env", "flock", "id", "ls", "mktemp", "rm", "sha256sum", "tail"]

#: Other programs that the script checks. A short PATH does not hide programs in system folders.
PROGRAMS = [
    "qemu-system-x86_64", "qemu-img", "mmdebstrap", "newuidmap", "mke2fs", "git", "ssh", "shellcheck", "mandoc", "sshd",
    "beanstalkd", "docker-registry", "gpg-agent", "openssl", "pvck", "sfdisk", "grub-script-check", "grub-editenv",
    "vagrant", "libvirtd", "virsh", "iptables", "dnsmasq", "chromium-headless-shell", "jq", "nginx", "genisoimage",
    "Xvfb", "xauth",
]  # fmt: skip


class Machine:
    """A PATH with the basic programs, and fake programs that record their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.bin.mkdir()
        for name in BASICS:
            (self.bin / name).symlink_to(shutil.which(name) or name)

    def fake(self, name: str, script: str = "") -> None:
        """Adds a program that records its arguments and then runs `script`."""
        program = self.bin / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.calls_file}"\n{script}\n')
        program.chmod(0o755)

    def fake_all(self, *, but: str = "") -> None:
        """Adds every program that the script checks, except `but`, and a real Python."""
        for name in PROGRAMS:
            if name != but:
                self.fake(name)
        self.fake("python3", f'exec "{sys.executable}" "$@"')

    def bootstrap(self, *args: str) -> run.Completed:
        """Runs the script with only this PATH."""
        env = {"PATH": str(self.bin), "KIMBOX_VENV": str(self.folder / "venv"), "CI": "true"}
        return run.run([ROOT / "script/bootstrap", *args], env=env, check=False)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host on which sudo works and the installation with apt-get fails, so that the script ends there."""
    host = Machine(tmp_path)
    host.fake("sudo", '[[ $1 == -n ]] && shift\nexec "$@"')
    host.fake("apt-get", "[[ $* != *install* ]]")
    return host


def installs(calls: list[str]) -> list[str]:
    """The packages of each `apt-get install`."""
    return [c.split("--no-install-recommends ")[1] for c in calls if c.startswith("apt-get") and " install " in c]


def test_each_missing_package_is_printed_with_its_reason(machine: Machine) -> None:
    """apt-get installs all missing packages after one update."""
    done = machine.bootstrap("up")
    assert 6 == done.code
    packages = installs(machine.calls)[0].split()
    assert {"qemu-system-x86", "qemu-utils", "mmdebstrap", "uidmap", "git", "openssh-client"} <= set(packages)
    assert not {"shellcheck", "openssh-server"} & set(packages)
    assert [] == [p for p in packages if f"  {p} - " not in done.stderr]
    assert 1 == sum(c.startswith("apt-get") and c.endswith(" update") for c in machine.calls)


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    """If only one program is missing, apt-get installs only its package."""
    machine.fake_all(but="qemu-img")
    machine.bootstrap("test")
    assert {"qemu-utils"} == set(installs(machine.calls)[0].split()) - {
        "debian-archive-keyring",
        "lz4",
        "xxhash",
        "vagrant-libvirt",
    }


def test_without_apt_the_missing_packages_are_printed(machine: Machine) -> None:
    """On a host without apt-get, the user must install them; the script installs nothing."""
    (machine.bin / "apt-get").unlink()
    done = machine.bootstrap("up")
    assert 6 == done.code
    assert "apt-get not found" in done.stderr
    assert "qemu-system-x86" in done.stderr.splitlines()[-1]


def test_a_folder_that_is_not_an_environment_is_not_changed(machine: Machine) -> None:
    """A KIMBOX_VENV with other files is refused."""
    machine.fake_all()
    machine.fake("apt-get")
    precious = machine.folder / "venv" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    done = machine.bootstrap("up")
    assert 6 == done.code
    assert "is not a virtual environment" in done.stderr
    assert "mine" == precious.read_text()


@pytest.mark.parametrize("script", ["script/bootstrap", "script/up", "script/test"])
def test_help_needs_nothing(machine: Machine, script: str) -> None:
    """--help works on a host without any of the programs, and changes nothing."""
    done = run.run([ROOT / script, "--help"], env={"PATH": str(machine.bin)})
    assert done.stdout.startswith(f"usage: {script}")
    assert [] == machine.calls


def test_an_unknown_mode_is_a_usage_error(machine: Machine) -> None:
    """Exit code 2, and the usage on stderr."""
    done = machine.bootstrap("everything")
    assert 2 == done.code
    assert done.stderr.startswith("usage:")
