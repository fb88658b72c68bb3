"""What closes a sealed box before its network starts: `seal`, `outbound`, and the units that wait for them."""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path

import fakeguest
import pytest
from fakeguest import FakeGuest, needs_namespace

from kimbox import paths

guest = fakeguest.guest  # a fixture

SECURE = paths.provisioners_dir() / "secure/root/usr/lib/kimbox"

#: nft: logs the rules that it gets, and lists three chains that drop.
NFT = """#!/bin/sh
case "$*" in
'-f -') cat >>/tmp/nft.log ;;
*list*) for hook in input forward output; do echo "hook $hook priority filter; policy drop;"; done ;;
*) printf '%s\\n' "$*" >>/tmp/nft.log ;;
esac
"""

#: getent: has two names, one with two addresses. It is only asked for names of the name server.
GETENT = """#!/bin/sh
[ "$1 $2 $3" = "-s hosts:dns ahosts" ] || exit 2
grep -F -e "$4 " /tmp/dns | while read -r _ address; do echo "$address STREAM $4"; done
"""


@pytest.fixture
def sealed(guest: FakeGuest) -> FakeGuest:
    """A guest with the files of a role. `nft` and `getent` are replaced by scripts."""
    for name in ("seal", "outbound"):
        text = (SECURE / name).read_text().replace("PATH=/usr/sbin", "PATH=/usr/local/sbin:/usr/sbin")
        (guest.root / "usr/lib/kimbox" / name).write_text(text)
        (guest.root / "usr/lib/kimbox" / name).chmod(0o755)
    for name, text in {"nft": NFT, "getent": GETENT}.items():
        guest.path(f"/usr/local/sbin/{name}").write_text(text)
        guest.path(f"/usr/local/sbin/{name}").chmod(0o755)
    for name in ("ssh", "hosts", "passwd"):
        (guest.root / "etc" / name).unlink()
    guest.path("/etc/ssh/sshd_config.d").mkdir(parents=True)
    guest.path("/etc/hosts").write_text("127.0.0.1 localhost\n")
    accounts = ("root:x:0:0", "_apt:x:42:65534", "worker:x:692:692", "vagrant:x:1000:1000")
    guest.path("/etc/passwd").write_text("".join(f"{account}::/:/bin/sh\n" for account in accounts))
    given = guest.path("/run/credentials/@system")
    for folder in (given, guest.path("/run/kimbox"), guest.path("/persistent/secure")):
        folder.mkdir(parents=True)
    (given / "kimbox.network").write_text("10.0.2.15/24 10.0.2.2 10.0.2.3\n")
    for name in ("answers.env", "credentials.enc"):
        guest.path(f"/persistent/secure/{name}").write_text("x=1\n")
    guest.path("/persistent/secure/outbound").write_text("10.0.2.9 22 tcp\narchive.test 443 tcp\narchive.test 80 tcp\n")
    guest.path("/persistent/kimbox").mkdir(exist_ok=True)
    guest.path("/persistent/kimbox/secured").touch()
    return guest


def seal(guest: FakeGuest, *policy: str) -> str:
    """Seals the guest with these lines of its policy. Returns the rules."""
    guest.path("/persistent/secure/policy.env").write_text("".join(f"{line}\n" for line in ("X=1", *policy)))
    done = guest.run("/usr/lib/kimbox/seal")
    assert (0, "") == (done.code, done.stdout)
    return guest.path("/tmp/nft.log").read_text()


@needs_namespace
def test_only_root_and_apt_may_use_the_name_server(sealed: FakeGuest) -> None:
    """With `dns`, port 53 is open to two accounts. A job could send everything through a name server."""
    added = [line for line in seal(sealed, "KIMBOX_DNS='yes'").splitlines() if line.startswith("add element")]
    assert ["add element inet kimbox resolvers4 { 10.0.2.3 }"] == [line for line in added if "resolvers4" in line]
    assert ["{ 0 }", "{ 42 }"] == [line.partition("resolving ")[2] for line in added if "resolving" in line]
    rules = [line.strip() for line in (SECURE / "seal.nft").read_text().splitlines() if "53" in line]
    assert len(rules) == 1
    assert rules[0].startswith("meta skuid @resolving ip daddr @resolvers4 ")


@needs_namespace
def test_without_dns_nobody_may(sealed: FakeGuest) -> None:
    """No name server and no account is in the sets."""
    assert not [line for line in seal(sealed).splitlines() if line.startswith("add") and "resolv" in line]


@needs_namespace
@pytest.mark.parametrize("inbound", ["22", "8080"])
def test_sshd_is_closed_before_it_starts(sealed: FakeGuest, inbound: str) -> None:
    """With port 22 in `inbound`, sshd runs before `harden`. `seal` has written its strict configuration by then."""
    written = sealed.path("/etc/ssh/sshd_config.d/00-sealed.conf")
    seal(sealed, f"KIMBOX_INBOUND='{inbound}'")
    assert "AuthorizedKeysFile /run/kimbox/authorized_keys/%u" in written.read_text().splitlines()
    assert (inbound != "22") == sealed.path("/run/kimbox/nossh").exists()


@needs_namespace
def test_a_box_whose_sshd_cannot_be_closed_is_not_sealed(sealed: FakeGuest) -> None:
    """`seal` fails with the reason, and `early` powers the box off."""
    shutil.rmtree(sealed.path("/etc/ssh"))
    sealed.path("/persistent/secure/policy.env").write_text("KIMBOX_INBOUND='22'\n")
    done = sealed.run("/usr/lib/kimbox/seal")
    assert (1, "sshd cannot be configured\n") == (done.code, done.stdout)


@needs_namespace
def test_the_names_of_the_spec_are_in_the_hosts_file(sealed: FakeGuest) -> None:
    """An account without a name server finds them. Addresses are replaced, and kept if a name cannot be resolved."""
    hosts, dns = sealed.path("/etc/hosts"), sealed.path("/tmp/dns")
    mark = "# kimbox: the hosts that this box may reach"
    for known, expected in (
        ("archive.test 203.0.113.1\narchive.test 203.0.113.2\n", ["203.0.113.1", "203.0.113.2"]),
        ("archive.test 203.0.113.3\n", ["203.0.113.3"]),
        ("", ["203.0.113.3"]),
    ):
        dns.write_text(known)
        assert (0 if known else 1) == sealed.run("/usr/lib/kimbox/outbound").code
        lines = ["127.0.0.1 localhost", *(f"{address} archive.test {mark}" for address in expected)]
        assert lines == hosts.read_text().splitlines()
    hosts.write_text(hosts.read_text() + "203.0.113.9 other archive.test # by hand\n")
    assert 0 == sealed.run("/usr/lib/kimbox/outbound").code
    assert [
        "203.0.113.9 other archive.test # by hand",
        f"203.0.113.9 archive.test {mark}",
    ] == hosts.read_text().splitlines()[1:]
    assert 0o644 == hosts.stat().st_mode & 0o777
    assert "203.0.113.3 . tcp . 443 timeout 2h" in sealed.path("/tmp/nft.log").read_text()


def unit(path: Path) -> dict[str, list[str]]:
    """Returns the words of each setting of a unit's first section."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(path)
    return {name: value.split() for name, value in parser["Unit"].items()}


@pytest.mark.parametrize(
    "name",
    [
        "ssh/root/etc/systemd/system/ssh.service",
        "provision/root/usr/lib/systemd/system/provisiond.service",
        "base/root/usr/lib/systemd/system/systemd-networkd.service.d/kimbox.conf",
    ],
)
def test_nothing_that_reaches_the_network_starts_without_early(name: str) -> None:
    """If the program that closes a sealed box dies, sshd, the network and provisioning do not start."""
    settings = unit(paths.provisioners_dir() / name)
    assert "kimbox-early.service" in settings["requires"]
    assert "kimbox-early.service" in settings["after"]
