"""provisioners/identity: what the scripts do in a guest and while an image is built, with makers of the test's own."""

from __future__ import annotations

import hashlib
import shutil
import struct
from pathlib import Path

import pytest
from fakeguest import FakeGuest, can_unshare

from kimbox import paths

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine allows no mount namespace")

IDENTITY = "/usr/lib/kimbox/identity"
FAILED = "/run/kimbox/identity.failed"
MARK = "/var/lib/kimbox/identity"
SOURCE = paths.provisioners_dir() / "identity"

MAKER = """\
#!/bin/sh
# needs: /opt/{name}/program
# removes: /opt/{name}/key
# data: /opt/{name}/data/*/main
echo run >>/opt/{name}/runs
{body}
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """A guest with the scripts, and with two makers, `one` and `two`, whose packages are there."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    guest = FakeGuest(tmp_path / "guest")
    shutil.copytree(SOURCE / "root/usr/lib/kimbox", guest.path("/usr/lib/kimbox"), dirs_exist_ok=True)
    shutil.copy(SOURCE / "build", guest.path("/usr/lib/kimbox/build-identity"))
    shutil.rmtree(guest.path("/usr/lib/kimbox/identity.d"))
    guest.path("/usr/lib/kimbox/identity.d").mkdir()
    guest.path("/etc/ssl").unlink()  # it leads to this machine's
    for number, name in enumerate(("one", "two", "absent")):
        maker(guest, number, name, f"echo $$-$TMPDIR >/opt/{name}/key")
        guest.path(f"/opt/{name}").mkdir(parents=True)
    for name in ("one", "two"):
        guest.path(f"/opt/{name}/program").touch()
    return guest


def maker(guest: FakeGuest, number: int, name: str, body: str) -> None:
    """A file of identity.d."""
    file = guest.path(f"/usr/lib/kimbox/identity.d/1{number}-{name}")
    file.write_text(MAKER.format(name=name, body=body))
    file.chmod(0o755)


def runs(guest: FakeGuest, name: str) -> int:
    """How often a maker has run."""
    file = guest.path(f"/opt/{name}/runs")
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_each_is_made_once_on_a_new_root(guest: FakeGuest) -> None:
    """Those whose package is there; what is there is not made again, also where another boot asks."""
    assert guest.run(IDENTITY).ok
    assert [1, 1, 0] == [runs(guest, name) for name in ("one", "two", "absent")]
    assert guest.path("/opt/one/key").read_text().endswith("-/run/kimbox/identity\n")
    assert guest.path(MARK).exists()
    assert not guest.path(FAILED).exists()
    assert [] == list(guest.path("/var/lib/kimbox").glob("making-*"))
    guest.path(MARK).unlink()
    assert guest.run(IDENTITY).ok
    assert 1 == runs(guest, "one")


def test_what_is_there_in_part_counts_as_there(guest: FakeGuest) -> None:
    """A cluster of the maintainer's is no half-made one."""
    guest.path("/opt/one/data/17/main").mkdir(parents=True)
    assert guest.run(IDENTITY).ok
    assert [0, 1] == [runs(guest, name) for name in ("one", "two")]


def test_an_interrupted_run_is_made_good(guest: FakeGuest) -> None:
    """What the interrupted maker has left goes first; the others are not made again."""
    maker(guest, 0, "one", "mkdir -p /opt/one/data/17/main; touch /opt/one/data/17/main/half; kill -9 $PPID; exit 0")
    assert not guest.run(IDENTITY).ok
    assert guest.path("/opt/one/data/17/main/half").exists()
    assert not guest.path(MARK).exists()
    maker(guest, 0, "one", "echo whole >/opt/one/key")
    guest.new_boot()
    assert guest.run(IDENTITY).ok
    assert not guest.path("/opt/one/data/17/main").exists()
    assert "whole\n" == guest.path("/opt/one/key").read_text()
    assert guest.path(MARK).exists()


def test_a_failure_is_named_and_tried_again(guest: FakeGuest) -> None:
    """The first counts, with its last words; the others are made all the same."""
    maker(guest, 0, "one", "echo before; echo no entropy >&2; exit 1")
    done = guest.run(IDENTITY)
    assert 1 == done.code
    name, reason = guest.path(FAILED).read_text().splitlines()
    assert ("one", True) == (name, reason.endswith("could not be created: no entropy")), reason
    assert guest.path("/opt/two/key").exists()
    assert not guest.path(MARK).exists()
    maker(guest, 0, "one", "echo whole >/opt/one/key")
    guest.new_boot()
    assert guest.run(IDENTITY).ok
    assert (2, 1) == (runs(guest, "one"), runs(guest, "two"))


def test_nothing_is_made_on_the_real_root(guest: FakeGuest) -> None:
    """It would be in every later root."""
    guest.path("/run/kimbox").mkdir()
    guest.path("/run/kimbox/mode").write_text("maintain\n")
    assert guest.run(IDENTITY).ok
    assert (0, False) == (runs(guest, "one"), guest.path(MARK).exists())


def test_a_build_removes_what_was_made(guest: FakeGuest) -> None:
    """Keys and data of the packages that are there, with links beside them; of others nothing."""
    for name in ("one", "absent"):
        for file in ("key", "data/17/main/base"):
            guest.path(f"/opt/{name}/{file}").parent.mkdir(parents=True, exist_ok=True)
            guest.path(f"/opt/{name}/{file}").write_text("by chance")
    guest.path("/opt/one/0123abcd.0").symlink_to("key")
    guest.path("/opt/one/other").symlink_to("program")
    assert guest.run("/usr/lib/kimbox/build-identity").ok
    assert ["data", "data/17", "other", "program"] == sorted(
        str(path.relative_to(guest.path("/opt/one"))) for path in guest.path("/opt/one").rglob("*")
    )
    assert guest.path("/opt/absent/key").exists()


def test_the_build_removes_its_own_settings_and_logs_of_dkms(guest: FakeGuest) -> None:
    """A setting of the box and the modules stay."""
    folder = guest.path("/etc/dkms/framework.conf.d")
    folder.parent.unlink(missing_ok=True)  # it may lead to this machine's
    folder.mkdir(parents=True)
    shutil.copy(SOURCE / "root/etc/dkms/framework.conf.d/kimbox-build.conf", folder)
    built = guest.path("/var/lib/dkms/one/1.0/6.12.1/x86_64")
    (built / "log").mkdir(parents=True)
    (built / "module").mkdir()
    assert guest.run("/usr/lib/kimbox/build-identity").ok
    assert not guest.path("/etc/dkms").exists()
    assert ["module"] == [path.name for path in built.iterdir()]
    folder.mkdir(parents=True)
    (folder / "own.conf").touch()
    assert guest.run("/usr/lib/kimbox/build-identity").ok
    assert (folder / "own.conf").exists()


def text(value: str) -> bytes:
    """A string as Java writes it."""
    return struct.pack(">H", len(value)) + value.encode()


def jks(*entries: tuple[int, int]) -> bytes:
    """A key store with entries of these kinds (1: a key, 2: a certificate) and times, in milliseconds."""
    body = struct.pack(">III", 0xFEEDFEED, 2, len(entries))
    for number, (kind, time_ms) in enumerate(entries):
        body += struct.pack(">I", kind) + text(f"alias{number}") + struct.pack(">Q", time_ms)
        body += text("X.509") + struct.pack(">I", 300 + number) + bytes([number]) * (300 + number)
    return body + hashlib.sha1("changeit".encode("utf-16-be") + b"Mighty Aphrodite" + body).digest()  # noqa: S324


def test_a_store_of_certificates_gets_the_time_of_the_build(guest: FakeGuest) -> None:
    """Each entry, and the digest; its mode stays."""
    store = guest.path("/tmp/cacerts")
    store.write_bytes(jks((2, 1), (2, 99999999999999)))
    store.chmod(0o640)
    assert guest.run("/usr/lib/kimbox/certificate-times", "/tmp/cacerts", "1735689600").ok
    assert jks((2, 1735689600000), (2, 1735689600000)) == store.read_bytes()
    assert (0o640, ["cacerts"]) == (store.stat().st_mode & 0o777, [p.name for p in store.parent.glob("cacerts*")])


@pytest.mark.parametrize("data", [jks((1, 5)), jks((2, 5))[:-30], b"", b"\xfe\xed\xfe\xed", b"PKCS" * 20])
def test_another_store_stays_as_it_is(guest: FakeGuest, data: bytes) -> None:
    """One with a key, a damaged one, another format."""
    store = guest.path("/tmp/cacerts")
    store.write_bytes(data)
    assert guest.run("/usr/lib/kimbox/certificate-times", "/tmp/cacerts", "1735689600").ok
    assert data == store.read_bytes()
