"""Images from a path or URL: resumed, bounded, and never used unless their digest is right and they are disks."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagesite import Site, serving
from takenimage import CONTENT, MIB, digest_of, fetched, leftovers, refused

from kimbox import files, paths
from kimbox.image.sources import remote
from kimbox.image.store import images
from kimbox.run import Completed, run
from kimbox.spec.model import RemoteImage
from kimbox.transfer import http

#: How another Python finds kimbox and what it needs.
PYTHONPATH = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, no proxy, and no long pauses."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(http, "PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(http, "STALL_S", 30.0)
    return tmp_path / "home"


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server with a disk."""
    with serving(CONTENT) as made:
        yield made


def test_a_url_is_fetched_once(site: Site, home: Path) -> None:
    """The store has the image under its digest, with holes and read-only; a second call asks nobody."""
    image = RemoteImage(site.url + "?token=secret", digest_of(CONTENT))
    got = fetched(image)
    assert got == fetched(image) == images.find(digest_of(CONTENT)[7:])
    assert [None] == site.ranges
    assert ["/box.img?token=secret"] == site.paths
    assert CONTENT == got.disk.read_bytes()
    assert ("raw", len(CONTENT), site.url) == (got.format, got.facts["virtual_bytes"], got.facts["location"])
    assert got.disk.stat().st_blocks * 512 < MIB
    assert 0o444 == got.disk.stat().st_mode & 0o777
    assert [] == leftovers(home)


def test_a_broken_connection_is_taken_up(site: Site, home: Path) -> None:
    """Each further request asks for what is missing, if it is still the same file."""
    site.break_after = [1 << 20, 1 << 19]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert 3 == len(site.requests)
    starts = [int(r[6:-1]) for r in site.ranges if r]
    assert 0 < starts[0] < starts[1]
    assert ['"1"', '"1"'] == [r.get("If-Range") for r in site.requests[1:]]
    assert [] == leftovers(home)


def test_the_next_call_goes_on(site: Site, home: Path) -> None:
    """What came before a failure stays, and is not fetched again."""
    site.break_after = [MIB]
    site.statuses = []
    site.after_break = lambda: site.statuses.extend([503] * 4)
    message = refused(site.url)
    assert "503" in message
    assert "run the same command again" in message
    assert 2 == len(leftovers(home))
    site.after_break = None
    fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert (site.ranges[-1] or "").startswith("bytes=")
    assert [] == leftovers(home)


def test_a_server_without_ranges_starts_anew(site: Site) -> None:
    """An answer with the whole file is taken from its beginning."""
    site.takes_ranges = False
    site.break_after = [MIB]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert 2 == len(site.requests)


@pytest.mark.parametrize("etag", ['"1"', None, 'W/"1"'])
def test_a_file_that_changes_between_tries(site: Site, home: Path, etag: str | None) -> None:
    """With a validator the server sends the new file; without, the digest tells, and it is fetched anew."""
    old = bytes(reversed(CONTENT))
    site.content, site.etag, site.break_after = old, etag, [MIB]

    def change() -> None:
        site.content, site.etag = CONTENT, '"2"' if etag == '"1"' else etag

    site.after_break = change
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert [] == leftovers(home)


def test_a_server_that_goes_on_elsewhere(site: Site) -> None:
    """An answer with another part of the file than was asked for is not taken for it."""
    site.range_lie, site.break_after = 1, [MIB]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert [False, True, False] == [r is not None for r in site.ranges]


def test_the_proxy_of_the_environment_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that only the proxy knows is reached."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.port}")
    url = "http://images.invalid/box.img"
    assert CONTENT == fetched(RemoteImage(url, digest_of(CONTENT))).disk.read_bytes()
    assert [url] == site.paths


def test_a_wrong_digest_names_both(site: Site, home: Path) -> None:
    """What is not wanted is refused and removed."""
    message = refused(site.url, b"another")
    assert digest_of(b"another") in message
    assert digest_of(CONTENT) in message
    assert [] == leftovers(home)
    assert images.find(digest_of(b"another")[7:]) is None


def test_a_damaged_part_is_fetched_anew(site: Site, home: Path) -> None:
    """A part that a power cut has damaged, whole or not, costs a second download, no more."""
    key = digest_of(CONTENT)[7:]
    for size in (MIB, len(CONTENT), len(CONTENT) + 5):
        part = home / "downloads" / f"{key}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"\1" * size)
        assert CONTENT == fetched(RemoteImage(site.url, f"sha256:{key}")).disk.read_bytes()
        shutil.rmtree(home / "images")
    assert [] == leftovers(home)


def test_a_whole_part_needs_no_server(home: Path) -> None:
    """After a kill between download and store, nothing is fetched again."""
    key = digest_of(CONTENT)[7:]
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / f"{key}.part").write_bytes(CONTENT)
    assert CONTENT == fetched(RemoteImage("http://127.0.0.1:1/x", f"sha256:{key}")).disk.read_bytes()


@pytest.mark.parametrize("lie", [1000, -1000])
def test_a_server_that_lies_about_the_length(site: Site, home: Path, lie: int) -> None:
    """The digest is what counts: too long a promise does no harm, too short a one is refused."""
    site.lie = lie
    if lie > 0:
        assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    else:
        assert digest_of(CONTENT[:lie]) in refused(site.url)
    assert [] == leftovers(home)


def test_a_length_that_is_not_told(site: Site) -> None:
    """The end of the connection is the end of the file."""
    site.tells_length = False
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()


@pytest.mark.parametrize("drip_s", [0.0, 0.05])
def test_a_server_that_stalls(site: Site, drip_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, and a byte now and then, end within the time limit, and the tries with them."""
    monkeypatch.setattr(http, "STALL_S", 0.25)
    site.drip_s = drip_s
    started = time.monotonic()
    message = refused(site.url)
    assert "bytes in" in message or "sent nothing" in message
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 4), (503, 4), (204, 1)])
def test_other_answers(site: Site, home: Path, status: int, tries: int) -> None:
    """What may pass is asked again, the rest is final; either way the status is named."""
    site.statuses = [status] * 9
    assert str(status) in refused(site.url)
    assert tries == len(site.requests)


def test_a_server_that_mends_itself(site: Site) -> None:
    """A passing failure costs a pause."""
    site.statuses = [500, 503]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()


@pytest.mark.parametrize("location", ["/box.img", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_redirects_have_an_end(site: Site, location: str) -> None:
    """A loop is cut after a few, and none leads out of http and https."""
    site.location = location
    message = refused(site.url)
    assert "redirects" in message or "no http or https URL" in message
    assert len(site.requests) <= http.MAX_REDIRECTS + 2


def test_a_redirect_is_followed(site: Site) -> None:
    """One that leads somewhere does its work."""
    with serving(b"") as first:
        first.location = site.url
        assert CONTENT == fetched(RemoteImage(first.url, digest_of(CONTENT))).disk.read_bytes()


def test_nobody_there() -> None:
    """A refused connection is said at once."""
    assert "cannot be reached" in refused("http://127.0.0.1:1/box.img")


def test_too_large_and_no_room(site: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length beyond the limit or the disk's room is refused before a byte is written; so is a file without end."""
    with monkeypatch.context() as patch:
        patch.setattr(http, "MAX_BYTES", MIB)
        assert "too large" in refused(site.url)
        site.tells_length = False
        assert "no end" in refused(site.url)
    site.tells_length = True
    free = shutil.disk_usage(home)._replace(free=MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert "has 1.0 MiB free" in refused(site.url)


#: A kimbox that kills itself once half a MiB has come.
KILLED = """
import os, signal, sys
from kimbox.transfer import http
from kimbox.image import obtain
from kimbox.spec.model import RemoteImage

add = http._Transfer.add

def add_and_die(self, piece):
    add(self, piece)
    self.file.flush()
    if self.position > 1 << 19:
        os.kill(os.getpid(), signal.SIGKILL)

http._Transfer.add = add_and_die
with obtain.leased_file(RemoteImage(sys.argv[1], sys.argv[2])):
    pass
"""


def fetch_and_die(site: Site, home: Path) -> Completed:
    """Another kimbox that fetches and is killed."""
    env = {"PYTHONPATH": PYTHONPATH, "KIMBOX_HOME": str(home), "no_proxy": "*"}
    return run([sys.executable, "-c", KILLED, site.url, digest_of(CONTENT)], env=env, check=False)


def test_a_kill_in_the_middle(site: Site, home: Path) -> None:
    """The next call goes on where the killed one was, and nothing stays of it."""
    assert -9 == fetch_and_die(site, home).code
    part = home / "downloads" / f"{digest_of(CONTENT)[7:]}.part"
    come = part.stat().st_size
    assert come > 0
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert f"bytes={come}-" == site.ranges[-1]
    assert [] == leftovers(home)


def test_old_downloads_are_swept(site: Site, home: Path) -> None:
    """A download that nobody went on with is removed by the next one; a recent one is not."""
    folder = paths.downloads_dir()
    folder.mkdir(parents=True)
    for name, age in (("a" * 64, remote.PARTIAL_KEPT_S + 60), ("b" * 64, 60)):
        (folder / f"{name}.part").write_bytes(b"x")
        os.utime(folder / f"{name}.part", (time.time() - age,) * 2)
    own = folder / f"{digest_of(CONTENT)[7:]}.part"
    own.write_bytes(CONTENT[:MIB])
    os.utime(own, (1, 1))
    fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert [f"bytes={MIB}-"] == site.ranges
    assert ["b" * 64 + ".part"] == [p.name for p in folder.iterdir()]


def test_a_file_is_copied_with_its_holes(tmp_path: Path, home: Path) -> None:
    """The store has a copy of its own, as sparse as the original; the original is left alone."""
    source = tmp_path / "disk.img"
    with source.open("wb") as file:
        file.write(CONTENT[:70000])
        file.truncate(64 * MIB)
    digest = files.sha256_file(source)
    got = fetched(RemoteImage(str(source), digest))
    source.write_bytes(b"changed")
    assert digest == files.sha256_file(got.disk)
    assert got.disk.stat().st_blocks * 512 < MIB
    assert [] == leftovers(home)


def test_files_that_are_none(tmp_path: Path, home: Path) -> None:
    """A missing file, a folder and a FIFO are refused, and a wrong digest names both."""
    assert "No such file" in refused(tmp_path / "none")
    assert "not a regular file" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refused(tmp_path / "fifo")
    (tmp_path / "disk").write_bytes(CONTENT)
    message = refused(tmp_path / "disk", b"another")
    assert digest_of(b"another") in message
    assert digest_of(CONTENT) in message
    assert [] == leftovers(home)
