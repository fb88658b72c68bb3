"""Each kind of store with a real server: the interface, conditional creation, and servers that fail."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import davserver
import makesaved
import pytest
import storeservers
from clirun import Kimbox, result
from clirun import kimbox as kimbox
from clirun import world as world
from davserver import Dav
from storeservers import KINDS

from kimbox.errors import KimboxError, UsageError
from kimbox.machine.folder import Machine
from kimbox.transfer.stores import requests
from kimbox.transfer.stores.base import READ_BYTES, all_of
from kimbox.transfer.stores.opening import is_url, open_store
from kimbox.transfer.stores.requests import Server, StatusError

PACK = f"packs/000001-{'a' * 64}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_interface(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is read, in parts and as a whole; a taken name is not replaced; what is not there is said."""
    data = os.urandom(READ_BYTES + 100_000)
    (tmp_path / "data").write_bytes(data)
    pack = f"packs/000001-{hashlib.sha256(data).hexdigest()}"
    with storeservers.serving(kind, tmp_path, monkeypatch) as url, contextlib.closing(open_store(url)) as store:
        assert ([], None) == (store.names("saves"), store.size(pack))
        with pytest.raises(KimboxError) as caught:
            store.read(pack, 0, 10)
        assert ("save-not-found", pack) == (caught.value.code, caught.value.fields["object"])
        store.remove("saves/000001.json")
        store.write(pack, tmp_path / "data")
        assert len(data) == store.size(pack)
        assert data == all_of(store, pack, len(data))
        assert data[5_000_000:5_000_100] == store.read(pack, 5_000_000, 100)
        assert (data[-3:], b"") == (store.read(pack, len(data) - 3, 100), store.read(pack, len(data), 100))
        store.write(pack, tmp_path / "data")
        signature = f"signatures/000001-{'b' * 64}"
        (tmp_path / "data").write_bytes(b"signed")
        store.write(signature, tmp_path / "data")
        assert (b"signed", 6) == (store.read(signature, 0, 10), store.size(signature))
        assert store.create("saves/000001.json", b"one", [pack, signature])
        assert not store.create("saves/000001.json", b"two", [pack])
        assert (b"one", 3) == (store.read("saves/000001.json", 0, 10), store.size("saves/000001.json"))
        with contextlib.closing(open_store(url)) as other:
            assert ["saves/000001.json"] == other.names("saves")
            assert other.create("saves/000002.json", b"two", [pack])
        assert "saves/000002.json" in store.names("saves")
        store.remove("saves/000001.json")
        assert store.size("saves/000001.json") is None
        for name in ("packs/../x", "/etc/passwd", "saves/1.json", "packs", ""):
            with pytest.raises(ValueError, match="name"):
                store.size(name)


def test_the_login_of_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent, and is in no message; without it the error names ~/.netrc."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with davserver.serving(tmp_path / "served") as dav:
        dav.authorization = "Basic bWU6c2VjcmV0"
        with pytest.raises(KimboxError) as caught:
            open_store(dav.url).size(PACK)
        assert ("store-failed", "401") == (caught.value.code, caught.value.fields["status"])
        assert ".netrc" in (caught.value.hint or "")
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
        (tmp_path / ".netrc").chmod(0o600)
        store = open_store(dav.url)
        assert store.size(PACK) is None
        assert "secret" not in repr(store)


@pytest.fixture
def dav(tmp_path: Path) -> Iterator[Dav]:
    """A WebDAV server."""
    with davserver.serving(tmp_path / "served") as running:
        yield running


def test_a_server_without_move(dav: Dav) -> None:
    """A conditional PUT does the same."""
    dav.without = ("MOVE",)
    store = open_store(dav.url)
    assert store.create("saves/000001.json", b"one", [])
    assert not store.create("saves/000001.json", b"two", [])
    assert b"one" == store.read("saves/000001.json", 0, 10)


def test_a_server_that_dies_in_an_upload(dav: Dav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so, nothing appears, and the next call works."""
    (tmp_path / "data").write_bytes(os.urandom(3_000_000))
    store = open_store(dav.url)
    dav.dies_after = 1_000_000
    monkeypatch.setattr(requests, "PAUSES_S", (0.01, 0.01))
    with pytest.raises(KimboxError) as caught:
        store.write(PACK, tmp_path / "data")
    assert "store-failed" == caught.value.code
    assert store.size(PACK) is None
    dav.dies_after = None
    store.write(PACK, tmp_path / "data")
    assert 3_000_000 == store.size(PACK)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def test_what_a_server_cannot_do_now_is_repeated(dav: Dav, tmp_path: Path, pauses: list[float]) -> None:
    """After errors of the server, resets and cut bodies, all is as without them. The attempts are bounded."""
    data = os.urandom(300_000)
    (tmp_path / "data").write_bytes(data)
    store = open_store(dav.url)
    assert store.size(PACK) is None
    store.write(PACK, tmp_path / "data")
    assert [] == pauses
    (tmp_path / "data").write_bytes(data[::-1])
    dav.troubles = [503, 0, 500]
    store.write(PACK, tmp_path / "data")
    assert data[::-1] == (dav.folder / "dav/tiny" / PACK).read_bytes()
    dav.troubles, dav.cuts_body_from = [0, 429], 100_000
    assert data[::-1] == store.read(PACK, 0, len(data))
    assert 6 == len(pauses)
    dav.troubles = [502] * 100
    with pytest.raises(KimboxError) as caught:
        store.size(PACK)
    assert ("store-failed", "502", 95) == (caught.value.code, caught.value.fields["status"], len(dav.troubles))


def test_the_pause_that_a_server_asks_for(dav: Dav, pauses: list[float]) -> None:
    """It is obeyed, up to a minute. What is no number of seconds changes nothing."""
    store = open_store(dav.url)
    for asked in ("7", "100000", "Fri, 31 Dec 1999 23:59:59 GMT", "-1", "9" * 5000):
        dav.troubles, dav.retry_after = [503], asked
        assert store.size(PACK) is None
    assert [7.0, 60.0, 0.5, 0.5, 0.5] == pauses


def test_what_must_not_happen_twice_is_not_repeated(dav: Dav, pauses: list[float]) -> None:
    """A conditional request is sent once: its first attempt may have succeeded."""
    dav.without = ("MOVE",)
    store = open_store(dav.url)
    assert store.create("saves/000001.json", b"one", [])
    server = Server(dav.url, None)
    for method, condition in (("MOVE", {}), ("PUT", {"If-None-Match": "*"})):
        dav.troubles, headers = [503, 503], {"Content-Length": "3", **condition}
        sent = server.request(method, f"{dav.url}/x", file=io.BytesIO(b"two"), headers=headers)
        with pytest.raises(StatusError), sent:
            pass
        assert [503] == dav.troubles
    assert [] == pauses


def test_a_full_store(dav: Dav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is `no-space`, of a server and of a folder. Of the folder no temporary file stays."""
    (tmp_path / "data").write_bytes(b"x" * 1000)
    dav.is_full = True
    with pytest.raises(KimboxError) as caught:
        open_store(dav.url).write(PACK, tmp_path / "data")
    assert "no-space" == caught.value.code

    def write(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(KimboxError) as caught:
            open_store(str(tmp_path / "store")).write(PACK, tmp_path / "data")
    assert "no-space" == caught.value.code
    assert [] == [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_an_unknown_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host key that is not in known_hosts is an error."""
    with storeservers.serving("sftp", tmp_path, monkeypatch) as url:
        (tmp_path / ".ssh/known_hosts").write_text("")
        with pytest.raises(KimboxError) as caught:
            open_store(url)
        assert ("store-failed", True) == (caught.value.code, "not found in known_hosts" in caught.value.message)


@pytest.mark.parametrize("scheme", ["sftp", "https", "http", "oci", "s3"])
def test_a_password_in_a_url(scheme: str) -> None:
    """It is refused, because other users see the command line, and the message does not repeat it."""
    with pytest.raises(KimboxError) as caught:
        open_store(f"{scheme}://me:secret@example.org/x")
    assert "secret-in-url" == caught.value.code
    assert "secret" not in caught.value.message


def test_a_redirect_to_another_kind_of_url(dav: Dav, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not followed."""
    monkeypatch.setattr(davserver.Handler, "is_refused", redirecting)
    with pytest.raises(KimboxError) as caught:
        open_store(dav.url).size(PACK)
    assert "store-failed" == caught.value.code


def redirecting(handler: davserver.Handler) -> bool:
    """Answers each request with a redirect to a URL that is none."""
    handler.close_connection = True
    handler.answer(302, Location="ftp://example.org/x")
    return True


@pytest.mark.parametrize("url", ["", "gopher://x/y", "file://host/x", "x\n", "sftp://", "sftp://h", "a" * 3000])
def test_what_is_no_store(url: str) -> None:
    """It is an error before anything is contacted."""
    with pytest.raises(KimboxError) as caught:
        open_store(url)
    assert "bad-url" == caught.value.code


def test_words_of_the_command_line() -> None:
    """A word is the URL of a store, or the name or spec of a box."""
    assert all(map(is_url, ("/srv/x", "./x", "../x", "~/x", "file:///x", "https://h/x", "sftp://h/x")))
    assert not any(map(is_url, ("tiny", "./kimbox.yaml", "boxes/x.yml", "x:y")))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_a_box_there_and_back(kind: str, kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two saves and a third one with --keep 2, of which one box is made. The second uploads nothing."""
    machine = makesaved.make_saved(world)
    mine = makesaved.get(machine, world, "persistent/mine")
    with storeservers.serving(kind, world, monkeypatch) as url:
        saves = [
            result(kimbox("--json", "save", "tiny", url, *words)[1], "save") for words in ((), (), ("--keep", "2"))
        ]
        assert [(1, []), (2, []), (3, [1])] == [(one["number"], one["removed"]) for one in saves]
        assert saves[0]["uploaded_bytes"] > 3_000_000 > saves[1]["uploaded_bytes"] == 0
        listed = result(kimbox("--json", "save", "--list", url)[1], "save")["saves"]
        assert [3, 2] == [one["number"] for one in listed]
        assert 0 == kimbox("create", "other", "--from", url)[0]
    assert mine == makesaved.get(Machine("other"), world, "persistent/mine")


@pytest.mark.parametrize(
    ("url", "variable"),
    [("s3://me@b/p", "AWS_ACCESS_KEY_ID"), ("gs://b/p?x=1", "GOOGLE_"), ("az://c/p#x", "AZURE_STORAGE_ACCOUNT_KEY")],
)
def test_a_url_of_a_bucket_has_nothing_but_its_path(url: str, variable: str) -> None:
    """The hint names the variables of that cloud."""
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert ("bad-url", True) == (caught.value.code, variable in str(caught.value.hint))
