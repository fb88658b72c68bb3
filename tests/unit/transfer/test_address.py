"""User names and passwords of URLs: separated from the URL, found in ~/.netrc, and sent to one server only."""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import refused

from kimbox.errors import ImageError, UsageError
from kimbox.transfer import address
from kimbox.transfer.address import Login, login_for, public_url, take


@pytest.fixture(autouse=True)
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of ~/.netrc. The file does not exist yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".netrc"


def write(netrc: Path, text: str, mode: int = 0o600) -> None:
    netrc.write_text(text)
    netrc.chmod(mode)


def words(login: Login | None) -> tuple[bytes, bytes] | None:
    """User name and password of a login."""
    return (login.user, login.password) if login else None


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://alice:pa@ss@h:8/a@b?token=x#y", "https://h:8/a@b"),
        ("http://alice@h?x", "http://h"),
        ("http://h#a@b/c", "http://h"),
        ("/a path/x?y#z@h.box", "/a path/x?y#z@h.box"),
    ],
)
def test_the_public_part_of_a_url(url: str, public: str) -> None:
    """It has no user name, password, query or fragment. A path stays as it is."""
    assert public == public_url(url)


@pytest.mark.parametrize(
    ("url", "clean", "login"),
    [
        ("https://h/x?y=z", "https://h/x?y=z", None),
        ("https://al%40ice:p%2Fa%3As:s@h:8/x?y=z", "https://h:8/x?y=z", (b"al@ice", b"p/a:s:s")),
        ("http://alice@[::1]:8/x", "http://[::1]:8/x", (b"alice", b"")),
        ("http://caf%E9:%C3%A9@h/", "http://h/", (b"caf\xe9", "\u00e9".encode())),
        ("http://:secret@h/", "http://h/", (b"", b"secret")),
    ],
)
def test_a_login_in_a_url(url: str, clean: str, login: tuple[bytes, bytes] | None) -> None:
    """It is separated from the URL, and percent-decoded."""
    taken = take(url)
    assert (clean, login) == (taken[0], words(taken[1]))
    assert "secret" not in repr(taken[1])


@pytest.mark.parametrize(
    "url", ["http://alice:s3/cret@h/x", "http://alice:s3?cret@h/x", "http:///x", "http://a%3Ab:c@h/"]
)
def test_a_url_that_is_not_valid(url: str) -> None:
    """The error does not repeat a password that was not percent-encoded."""
    with refused(ImageError, "bad-url") as caught:
        take(url)
    assert "s3" not in repr(caught.value.as_json())


def test_netrc(netrc: Path) -> None:
    """The entry of the host, also for a user name in the URL. Never the entry `default`, which any server would get."""
    write(netrc, "machine h login alice password one\ndefault login bob password two\n")
    assert [(b"alice", b"one"), (b"alice", b"one"), (b"carol", b""), (b"alice", b"mine"), None] == [
        words(take(url)[1])
        for url in ("http://h:8/x", "https://alice@h/x", "http://carol@h/x", "http://alice:mine@h/", "https://other/x")
    ]


def test_a_netrc_that_others_can_read(netrc: Path) -> None:
    """It is refused if it has an entry for the host, and only then."""
    write(netrc, "machine h login alice password one\n", 0o644)
    assert take("http://other/")[1] is None
    with refused(UsageError, "file-not-private", path=str(netrc)):
        take("http://h/")


@pytest.mark.parametrize("text", ["machine h login\nmachine", "machine h \x00", "x" * (address.MAX_NETRC_BYTES + 1)])
def test_a_damaged_netrc(netrc: Path, text: str) -> None:
    """It is reported, and the request is sent without a login."""
    write(netrc, text)
    assert take("http://h/")[1] is None


def test_another_server_gets_no_password(netrc: Path) -> None:
    """Another scheme, host or port is another server. It gets its own entry of ~/.netrc, and only by https."""
    write(netrc, "machine other login bob password two\n")
    _, login = take("https://alice:one@h/x")
    urls = ("https://H:443/y", "https://h:444/", "http://h/", "http://other/", "https://other/")
    assert [(b"alice", b"one"), None, None, None, (b"bob", b"two")] == [words(login_for(url, login)) for url in urls]
