"""The key pair of a box for ssh, and the host key that kimbox pins."""

from __future__ import annotations

from pathlib import Path

import makemachine
import pytest
from refused import refused

from kimbox.errors import GuestError
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.run import run


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return makemachine.make_machine()


def test_each_box_has_its_own_key_pair(tmp_path: Path) -> None:
    """ed25519, without a passphrase, readable only by its user, and different for each box."""
    public = []
    for name in ("one", "two"):
        keys.make_pair(tmp_path / name, name)
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
        public.append((tmp_path / name).with_suffix(".pub").read_text())
        derived = run(["ssh-keygen", "-y", "-P", "", "-f", tmp_path / name]).stdout
        assert derived.split()[:2] == public[-1].split()[:2]
    assert public[0].startswith("ssh-ed25519 ")
    assert public[0].endswith(" kimbox-one\n")
    assert public[0].split()[1] != public[1].split()[1]


def test_a_real_host_key_is_pinned(machine: Machine, tmp_path: Path) -> None:
    """As ssh-keygen writes it in the guest, with its comment."""
    keys.make_pair(tmp_path / "host", "host")
    public = (tmp_path / "host.pub").read_text().strip()
    keys.pin_host_key(machine, public)
    assert f"{machine.alias} {' '.join(public.split()[:2])}\n" == machine.known_hosts.read_text()
    assert run(["ssh-keygen", "-F", machine.alias, "-f", machine.known_hosts]).ok
    assert " ".join(public.split()[:2]) == keys.host_key(machine)
    keys.pin_host_key(machine, public)
    keys.pin_host_key(machine, " ".join(public.split()[:2]))


@pytest.mark.parametrize(
    "reported_key",
    [
        "",
        "ssh-ed25519",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC",
        makemachine.HOST_KEY[:-1],
        makemachine.HOST_KEY + "A",
        makemachine.HOST_KEY[:-1] + "=",
        makemachine.HOST_KEY[:-1] + "-",
        "* " + makemachine.HOST_KEY,
        "@cert-authority * " + makemachine.HOST_KEY,
        makemachine.HOST_KEY + "\n* " + makemachine.HOST_KEY,
        makemachine.HOST_KEY + " x\n* ssh-ed25519 AAAA",
        "x" * 60000,
    ],
)
def test_nothing_else_is_accepted_from_a_guest(machine: Machine, reported_key: str) -> None:
    """No other kind of key, no other hosts, no second line, nothing that ssh cannot read."""
    with refused(GuestError, "bad-public-key", name="tiny") as caught:
        keys.pin_host_key(machine, reported_key)
    assert len(caught.value.message) < 300
    assert not machine.known_hosts.exists()


def test_a_key_that_is_missing_or_not_valid_is_none(machine: Machine) -> None:
    """`status` works before a box has a key, and with a damaged file."""
    assert keys.host_key(machine) is None
    for damaged in (b"", b"alias\n", b"\xff" * 5000):
        machine.known_hosts.write_bytes(damaged)
        assert keys.host_key(machine) is None


def test_another_key_later_is_refused(machine: Machine) -> None:
    """The first key counts. kimbox never replaces the content of known_hosts, even if it is not valid."""
    for pinned in (f"{machine.alias} {makemachine.OTHER_HOST_KEY}\n".encode(), b"\xff\xfe"):
        machine.known_hosts.write_bytes(pinned)
        with refused(GuestError, "host-key-mismatch", path=str(machine.known_hosts)) as caught:
            keys.pin_host_key(machine, makemachine.HOST_KEY)
        assert str(machine.known_hosts) in str(caught.value.hint)
        assert "the ssh host key of tiny has changed" == caught.value.message
        assert pinned == machine.known_hosts.read_bytes()
