"""The sources of a box: none that only this host reaches, and each with the key that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.lock.apt import boxsources, keys
from kimbox.lock.apt.sources import Source

#: A packet of the type "public key", with a content that is not a key.
KEY = keys.armor(b"\x99\0\4" + b"abcd")

HOSTS = "127.0.0.1 localhost\n127.0.1.1 Thishost.example.org thishost # x\n10.0.0.1 other\n::1 six\nnonsense\n"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_text(HOSTS)
    return tmp_path / "hosts"


def line_of(uri: str, hosts: Path) -> str | None:
    """The line of a box for a source with a URI."""
    found = boxsources.for_box([Source(uri, "trixie", ("main",))], "debian", hosts)
    return found.lines[0] if found.lines else None


@pytest.mark.parametrize(
    "uri",
    [
        "http://m.example.org/debian", "https://10.0.0.1:8080/debian", "http://other/debian", "ftp://m.example.org/d",
        "mirror+https://m.example.org/list", "http://[2001:db8::1]/debian",
    ],
)  # fmt: skip
def test_what_a_box_reaches(uri: str, hosts: Path) -> None:
    """Servers of a network, by the methods that every apt has."""
    assert f"deb {uri} trixie main" == line_of(uri, hosts)
    assert boxsources.is_for_box(f"deb {uri} trixie main")
    assert boxsources.is_for_box(f"deb [signed-by=/etc/apt/keyrings/x.asc] {uri} trixie main")


@pytest.mark.parametrize(
    "uri",
    [
        "file:/srv/debian", "file:///srv/debian", "copy:/srv/debian", "cdrom:[Debian_12]", "ssh://m.example.org/debian",
        "tor+http://m.example.org/debian", "http://localhost/debian", "http://LOCALHOST.:3142/debian", "http:///debian",
        "http://a.localhost/debian", "https://127.0.0.1:8/debian", "http://127.9.9.9/debian", "http://[::1]/debian",
        "http://0.0.0.0/debian", "mirror+http://localhost/list", "mirror+file:/no/such/list", "http://[::1/debian", "",
    ],
)  # fmt: skip
def test_what_only_this_host_reaches(uri: str, hosts: Path) -> None:
    """Files, CDs, programs that a box does not have, and servers of this host."""
    assert line_of(uri, hosts) is None
    assert not boxsources.is_for_box(f"deb {uri} trixie main")


@pytest.mark.parametrize("name", ["thishost", "THISHOST.example.org", "six"])
def test_names_of_this_host(name: str, hosts: Path) -> None:
    """Those of /etc/hosts. The lines of a lock do not depend on that file."""
    assert line_of(f"http://{name}/debian", hosts) is None
    assert boxsources.is_for_box(f"deb http://{name}/debian trixie main")
    assert line_of(f"http://{name}/debian", hosts.with_name("missing")) is not None


def test_a_list_of_mirrors(tmp_path: Path, hosts: Path) -> None:
    """The box gets the mirror that apt prefers among those that it can reach; an unreadable list gives none."""
    (tmp_path / "a list").write_text(
        "# comment\nhttp://last.example.org/debian/\n"
        "http://second.example.org/debian\tpriority:2 type:deb\n"
        "http://user:secret@first.example.org/debian\tarch:amd64 arch:i386 priority:1\n"
        "file:/srv/debian\tpriority:0\nhttp://source.example.org/debian priority:0 type:deb-src\n"
        "http://arm.example.org/debian\tpriority:0 arch:arm64\n"
    )
    uri = f"mirror+file:{tmp_path}/a%20list"
    assert "deb http://first.example.org/debian trixie main" == line_of(uri, hosts)
    found = boxsources.for_box(
        [Source(uri, "trixie", ("main",)), Source("file:/x", "trixie", ("main",))], "debian", hosts
    )
    assert ["file:/x"] == [source.uri for source in found.unreachable]
    (tmp_path / "a list").write_bytes(b"\xff\0" * 100)
    assert line_of(uri, hosts) is None


def test_keys(hosts: Path) -> None:
    """A source with a key of its own refers to it. The key of a source that the box does not get is left out."""
    mine, theirs = ("http://m.example.org/debian", "trixie", ("main",)), ("file:/srv/debian", "trixie", ("main",))
    found = boxsources.for_box([Source(*mine, KEY), Source(*theirs, keys.armor(b"\x99\0\1a"))], "debian", hosts)
    (name,) = found.keys
    assert boxsources.KEY_NAME.fullmatch(name)
    assert KEY == found.keys[name]
    assert (f"deb [signed-by=/etc/apt/keyrings/{name}] http://m.example.org/debian trixie main",) == found.lines
    other = boxsources.for_box([Source(*mine, KEY, (), is_other_suite=True)], "debian", hosts)
    paths = f"/etc/apt/keyrings/{name},/usr/share/keyrings/debian-archive-keyring.gpg"
    assert (f"deb [signed-by={paths}] http://m.example.org/debian trixie main",) == other.lines
    known = Source(*mine, "A" * 40)
    found = boxsources.for_box([known], "debian", hosts)
    assert (("deb http://m.example.org/debian trixie main",), {}, (known,)) == (
        found.lines, found.keys, found.without_key
    )  # fmt: skip
