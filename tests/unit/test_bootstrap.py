"""script/bootstrap says what it lacks and why, and installs that and nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from kimbox import run

ROOT = Path(__file__).resolve().parents[2]

#: What the script may count on being there, whatever else is missing.
BASICS = ["awk", "bash", "cat", "cut", "dirname", "env", "flock", "id", "ls", "mktemp", "rm", "sha256sum", "tail"]

#: Programs it looks for that a machine may have; those in system folders are not hidden by a short PATH.
PROGRAMS = [
    "qemu-system-x86_64", "qemu-img", "mmdebstrap", "newuidmap", "mke2fs", "git", "ssh", "shellcheck", "sshd",
    "beanstalkd", "gpg-agent", "openssl", "pvck", "sfdisk", "grub-script-check", "grub-editenv",
    "vagrant", "libvirtd", "virsh", "iptables", "dnsmasq",
]  # fmt: skip


class Machine:
    """A PATH with the basics, and fake programs that record how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.bin.mkdir()
        for name in BASICS:
            (self.bin / name).symlink_to(shutil.which(name) or name)

    def fake(self, name: str, script: str = "") -> None:
        """Puts a program there, which notes its arguments and then runs `script`."""
        program = self.bin / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.calls_file}"\n{script}\n')
        program.chmod(0o755)

    def fake_all(self, *, but: str = "") -> None:
        """Puts every program there that the script looks for, and a real Python."""
        for name in PROGRAMS:
            if name != but:
                self.fake(name)
        self.fake("python3", f'exec "{sys.executable}" "$@"')

    def bootstrap(self, *args: str) -> run.Completed:
        """Runs the script with this PATH and no other."""
        env = {"PATH": str(self.bin), "KIMBOX_VENV": str(self.folder / "venv"), "CI": "true"}
        return run.run([ROOT / "script/bootstrap", *args], env=env, check=False)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which sudo works and apt-get installs nothing, so that the script stops there."""
    made = Machine(tmp_path)
    made.fake("sudo", '[[ $1 == -n ]] && shift\nexec "$@"')
    made.fake("apt-get", "[[ $* != *install* ]]")
    return made


def installs(calls: list[str]) -> list[str]:
    """The packages of each call of apt-get install."""
    return [c.split("--no-install-recommends ")[1] for c in calls if c.startswith("apt-get") and " install " in c]


def test_a_bare_machine_is_told_each_package_and_why(machine: Machine) -> None:
    """Every missing program is named with its package and reason, and apt-get installs these after one update."""
    done = machine.bootstrap("up")
    assert 6 == done.code
    packages = installs(machine.calls)[0].split()
    assert {"qemu-system-x86", "qemu-utils", "mmdebstrap", "uidmap", "git", "openssh-client"} <= set(packages)
    assert not {"shellcheck", "openssh-server"} & set(packages)
    assert [] == [p for p in packages if f"  {p} - " not in done.stderr]
    assert 1 == sum(c.startswith("apt-get") and c.endswith(" update") for c in machine.calls)


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    """With every other program there, the one that is missing is all that is asked of apt-get."""
    machine.fake_all(but="qemu-img")
    machine.bootstrap("test")
    assert {"qemu-utils"} == set(installs(machine.calls)[0].split()) - {"debian-archive-keyring", "vagrant-libvirt"}


def test_without_apt_the_needs_are_named(machine: Machine) -> None:
    """A machine of another kind is told what to install, and nothing is tried."""
    (machine.bin / "apt-get").unlink()
    done = machine.bootstrap("up")
    assert 6 == done.code
    assert "no apt-get here" in done.stderr
    assert "qemu-system-x86" in done.stderr.splitlines()[-1]


def test_a_folder_that_is_no_environment_is_left_alone(machine: Machine) -> None:
    """A KIMBOX_VENV that holds something else is refused, not cleared."""
    machine.fake_all()
    machine.fake("apt-get")
    precious = machine.folder / "venv" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    done = machine.bootstrap("up")
    assert 6 == done.code
    assert "no virtual environment" in done.stderr
    assert "mine" == precious.read_text()


@pytest.mark.parametrize("script", ["script/bootstrap", "script/up", "script/test"])
def test_help_needs_nothing(machine: Machine, script: str) -> None:
    """--help answers on the barest machine, and touches nothing."""
    done = run.run([ROOT / script, "--help"], env={"PATH": str(machine.bin)})
    assert done.stdout.startswith(f"usage: {script}")
    assert [] == machine.calls


def test_a_wrong_word_is_a_usage_error(machine: Machine) -> None:
    """An unknown mode ends with exit code 2 and the usage."""
    done = machine.bootstrap("everything")
    assert 2 == done.code
    assert done.stderr.startswith("usage:")
