"""Boxes from a server: no file and no message has the password, downloads are resumed, and nothing remains."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import ownhome
import pytest
from clirun import result
from imagesite import Site, serving
from makebox import make_box
from refused import refused
from takenimage import CONTENT, MIB, digest_of, leftovers

from kimbox.actions import boxes, prune
from kimbox.cli import app
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.image import obtain
from kimbox.spec.model import RemoteImage
from kimbox.transfer import downloads, http

home = ownhome.home  # a fixture

add = functools.partial(boxes.add, digest=None, keys=(), force=False)

PASSWORD = "s3cr/t"


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, short pauses, and a home folder without a .netrc."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(http, "PAUSES_S", (0.01, 0.01))


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server with a disk."""
    with serving(CONTENT) as running_site:
        yield running_site


def with_login(site: Site) -> str:
    """The URL of the file with user name, password and a token."""
    return site.url.replace("//", f"//alice:{PASSWORD.replace('/', '%2F')}@") + "?token=t0ken"


def secrets_in(home: Path) -> list[Path]:
    """The files below a folder that contain the password or the token, in the form of the URL or as it is."""
    words = (PASSWORD.encode(), b"s3cr%2Ft", b"t0ken")
    files = [path for path in home.rglob("*") if path.is_file()]
    return [path for path in files if any(word in path.read_bytes() + str(path).encode() for word in words)]


def test_a_password_in_the_url(site: Site, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is sent, and neither a file of kimbox nor its output contains it."""
    site.login = f"alice:{PASSWORD}"
    assert 0 == app.run(["--json", "--verbose", "box", "add", "x", with_login(site)])
    captured = capsys.readouterr()
    assert site.url == result(captured.out, "box")["added"]["location"]
    assert 0 == app.run(["box", "list"])
    output = captured.out + captured.err + capsys.readouterr().out
    assert [] == [word for word in ("s3cr", "t0ken", "alice") if word in output]
    assert [] == secrets_in(home)


def test_errors_do_not_repeat_the_password(site: Site, home: Path) -> None:
    """Wrong password, lost connection, full disk of the server, wrong digest, redirect to another scheme."""
    url = with_login(site)
    site.login = "alice:other"
    found = []
    for fault in ("login", "break", "status", "digest", "redirect"):
        if fault == "break":
            site.login, site.break_after = f"alice:{PASSWORD}", [MIB, 0, 0, 0]
        site.statuses = [500] * 9 if fault == "status" else []
        site.location = "ftp://bob:s3cr%2Ft@h/?t0ken" if fault == "redirect" else None
        with pytest.raises(KimboxError) as caught:
            add("x", url, digest=digest_of(b"other") if fault == "digest" else None)
        found.append(caught.value.code)
        assert [] == [word for word in ("s3cr", "t0ken", "alice") if word in repr(caught.value.as_json())], fault
        assert [] == secrets_in(home)
    assert ["download-failed"] * 3 + ["checksum-mismatch", "bad-url"] == found


def test_files_of_a_download_are_private(site: Site) -> None:
    """Other users can neither enter the folder nor read the record of the download."""
    site.break_after = [MIB, 0, 0]
    with refused(ImageError, "download-failed"):
        add("x", site.url)
    part = downloads.part_of_url(site.url)
    assert (0o700, 0o600) == (part.parent.stat().st_mode & 0o777, http.state_file(part).stat().st_mode & 0o777)


def test_the_hint_for_a_missing_password(site: Site, tmp_path: Path) -> None:
    """It names the entry of ~/.netrc, which is then used, also for the box of a catalog at the same server."""
    site.login = f"alice:{PASSWORD}"
    with refused(ImageError, "download-failed", status="401") as caught:
        add("x", site.url)
    assert "machine 127.0.0.1 login NAME password PASSWORD" in (caught.value.hint or "")
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login alice password {PASSWORD}\n")
    netrc.chmod(0o600)
    assert digest_of(CONTENT) == add("x", site.url).digest


def test_netrc_for_the_image_of_a_spec(site: Site, tmp_path: Path) -> None:
    """Its URL cannot have a password. The file is not read if the image is in the store."""
    site.login = f"alice:{PASSWORD}"
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login alice password {PASSWORD}\n")
    netrc.chmod(0o600)
    box = attrs.evolve(make_box(tmp_path), image=RemoteImage(site.url, digest_of(CONTENT)))
    assert CONTENT == obtain.ensure(box, None).disk.read_bytes()
    netrc.chmod(0o644)
    assert CONTENT == obtain.ensure(box, None).disk.read_bytes()


def test_a_redirect_gets_no_password(site: Site) -> None:
    """The password goes only to the server of the URL, and again to the same server."""
    with serving(b"") as first:
        first.login, first.location = f"alice:{PASSWORD}", site.url
        add("x", with_login(first))
    assert [None] == [request.get("Authorization") for request in site.requests]
    site.login, site.location = f"alice:{PASSWORD}", "/other"
    with refused(ImageError, "download-failed", status="302"):  # a loop: each request had the password
        add("y", with_login(site))


def test_an_interrupted_download_continues_without_a_digest(site: Site, home: Path) -> None:
    """As the hint says; with --digest, it continues the same bytes."""
    for is_known in (False, True):
        site.break_after = [MIB, 0, 0]
        with refused(ImageError, "download-failed", received_bytes=str(MIB)) as caught:
            add("x", site.url)
        assert "it goes on after 1.0 MiB" in (caught.value.hint or "")
        site.requests.clear()
        add("x", site.url, digest=digest_of(CONTENT) if is_known else None)
        assert [f"bytes={MIB}-"] == site.ranges
        assert [] == leftovers(home)
        boxes.remove(["x"])


def test_no_promise_that_cannot_be_kept(site: Site) -> None:
    """Without a validator, and from a server without ranges, the next call starts from the beginning."""
    site.takes_ranges, site.break_after = False, [MIB] * 3
    with refused(ImageError, "download-failed") as caught:
        add("x", site.url)
    assert None is caught.value.hint
    downloads.remove(downloads.part_of_url(site.url))
    site.takes_ranges, site.etag, site.break_after = True, None, [MIB, 0, 0]
    with refused(ImageError, "download-failed", received_bytes=str(MIB)) as caught:
        add("x", site.url)
    assert None is caught.value.hint
    site.requests.clear()
    add("x", site.url)
    assert [None] == site.ranges


def test_parts_of_two_versions_are_not_joined(site: Site) -> None:
    """Neither if the server has a new file, nor if it ignores the condition, nor if the first part was damaged."""
    for fault in ("new file", "ignored condition", "damaged part"):
        site.content, site.etag, site.break_after = bytes(reversed(CONTENT)), '"1"', [MIB, 0, 0]
        with refused(ImageError, "download-failed"):
            add("x", site.url)
        site.content, site.etag = CONTENT, '"2"'
        site.ignores_condition = fault == "ignored condition"
        if fault == "damaged part":
            site.etag = '"1"'
            part = downloads.part_of_url(site.url)
            part.write_bytes(b"\1" * part.stat().st_size)
        assert digest_of(CONTENT) == add("x", site.url).digest
        boxes.remove(["x"])


def test_the_same_box_twice_leaves_nothing(site: Site, home: Path) -> None:
    """A second download of a file that the store has is removed."""
    for name in ("one", "two"):
        add(name, site.url)
        assert [] == leftovers(home)
    boxes.remove(["one", "two"])
    assert [] == [path for path in home.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_download_whose_name_is_in_use_is_not_lost(site: Site, tmp_path: Path, home: Path) -> None:
    """`prune` shows it, and the next attempt does not download it again."""
    (tmp_path / "disk").write_bytes(CONTENT + bytes(512))
    add("x", str(tmp_path / "disk"))
    with refused(StateError, "name-in-use"):
        add("x", site.url)
    assert [(downloads.part_of_url(site.url), f"download of {site.url}")] == [
        (item.path, item.description) for item in prune.unused_downloads()
    ]
    add("y", site.url)
    assert f"bytes={len(CONTENT)}-" == site.ranges[-1]
    assert [] == leftovers(home)


def test_box_list_and_prune_show_an_unfinished_download(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """`prune` removes it."""
    site.break_after = [MIB, 0, 0]
    with refused(ImageError, "download-failed"):
        add("x", site.url)
    part = downloads.part_of_url(site.url)
    assert 0 == app.run(["--json", "box", "list"])
    assert [str(part)] == [item["path"] for item in result(capsys.readouterr().out, "box")["downloads"]]
    assert 0 == app.run(["box", "list"])
    assert f"download of {site.url}" in capsys.readouterr().out
    assert 0 == app.run(["--json", "prune", "-y"])
    assert [str(part)] == [item["path"] for item in result(capsys.readouterr().out, "prune")["unused"]]
    assert (False, False) == (part.exists(), http.state_file(part).exists())


@pytest.mark.parametrize("place", ["/dev/zero", "fifo", "."])
def test_what_is_not_a_file_is_not_read(tmp_path: Path, place: str) -> None:
    """A device without an end and a FIFO without a writer do not block `box add`."""
    os.mkfifo(tmp_path / "fifo")
    with refused(KimboxError, "not-a-regular-file", path=str(tmp_path / place)):
        add("x", str(tmp_path / place))
