"""The algorithms of sshd in a sealed box, as a real sshd lists them and as the clients of kimbox use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import realsshd

from kimbox import paths
from kimbox.guest.ssh import Guest
from kimbox.run import run

#: What a scanner of sshd (ssh-audit) fails: parts of names, by the option that lists them.
WEAK = {
    "kexalgorithms": ("nistp", "sha1", "group1-", "group14-", "group-exchange"),
    "macs": ("sha1", "md5", "umac-64", "96"),
    "ciphers": ("cbc", "3des", "arcfour"),
}


@pytest.mark.skipif(realsshd.SSHD is None, reason="needs the package openssh-server")
def test_no_weak_algorithm_is_offered(tmp_path: Path) -> None:
    """The file of a sealed box removes them from the lists of OpenSSH, and leaves others."""
    realsshd.make_key(tmp_path / "host")
    sealed = paths.provisioners_dir() / "secure/root/usr/lib/kimbox/sealed.sshd"
    (tmp_path / "config").write_text(realsshd.configuration(tmp_path, 22) + sealed.read_text())
    listed = run([str(realsshd.SSHD), "-T", "-f", tmp_path / "config"]).stdout
    options = dict(line.split(" ", 1) for line in listed.splitlines() if " " in line)
    for option, weak in WEAK.items():
        names = options[option].split(",")
        assert [name for name in names if any(part in name for part in weak)] == []
        assert len(names) >= 3
    assert "hmac-sha2-256" in options["macs"]


def test_both_clients_of_kimbox_reach_it(tmp_path: Path) -> None:
    """paramiko and ssh have a key exchange and a MAC that are left."""
    with realsshd.serving(tmp_path) as endpoint:
        with Guest(endpoint) as guest:
            assert guest.run("echo paramiko", timeout_s=20).stdout == "paramiko\n"
        options = {
            "Port": endpoint.port, "User": endpoint.user, "IdentityFile": tmp_path / "client", "BatchMode": "yes",
            "UserKnownHostsFile": tmp_path / "known_hosts", "HostKeyAlias": "box", "IdentityAgent": "none",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        assert run(["ssh", "-F", "none", *words, "127.0.0.1", "echo OpenSSH"]).stdout == "OpenSSH\n"
