"""Images from a path or URL: downloads are resumed and limited, and only disks with the right digest are used."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagesite import Site, serving
from refused import refused
from takenimage import CONTENT, MIB, digest_of, fetched, leftovers, refusal

from kimbox import files, paths
from kimbox.errors import ImageError, KimboxError
from kimbox.image.store import images
from kimbox.run import Completed, run
from kimbox.spec.model import RemoteImage
from kimbox.transfer import connection, downloads, http

#: Module search path for another Python process, which needs kimbox and its libraries.
PYTHONPATH = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, no proxy, and short pauses."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(http, "PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(http, "STALL_S", 30.0)
    return tmp_path / "home"


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server with a disk."""
    with serving(CONTENT) as running_site:
        yield running_site


def test_a_url_is_fetched_once(site: Site, home: Path) -> None:
    """The store has the image under its digest, sparse and read-only. A second call sends no request."""
    remote_image = RemoteImage(site.url + "?token=secret", digest_of(CONTENT))
    image = fetched(remote_image)
    assert image == fetched(remote_image) == images.find(digest_of(CONTENT)[7:])
    assert [None] == site.ranges
    assert ["/box.img?token=secret"] == site.paths
    assert CONTENT == image.disk.read_bytes()
    assert ("raw", len(CONTENT), site.url) == (image.format, image.facts["virtual_bytes"], image.facts["location"])
    assert image.disk.stat().st_blocks * 512 < MIB
    assert 0o444 == image.disk.stat().st_mode & 0o777
    assert [] == leftovers(home)


def test_a_lost_connection_is_resumed(site: Site, home: Path) -> None:
    """Each further request is for the missing bytes, on condition that the file is unchanged."""
    site.break_after = [1 << 20, 1 << 19]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert 3 == len(site.requests)
    starts = [int(r[6:-1]) for r in site.ranges if r]
    assert 0 < starts[0] < starts[1]
    assert ['"1"', '"1"'] == [r.get("If-Range") for r in site.requests[1:]]
    assert [] == leftovers(home)


def test_the_next_call_continues(site: Site, home: Path) -> None:
    """The bytes received before a failure are kept, and are not downloaded again. The hint says so."""
    site.break_after = [MIB]
    site.statuses = []
    site.after_break = lambda: site.statuses.extend([503] * 4)
    error = refusal(site.url)
    assert ("download-failed", "status", "503") == (error.code, error.fields["reason"], error.fields["status"])
    assert "503" in error.message
    assert "run the same command again" in (error.hint or "")
    assert 2 == len(leftovers(home))
    site.after_break = None
    fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert (site.ranges[-1] or "").startswith("bytes=")
    assert [] == leftovers(home)


def test_a_server_without_ranges_starts_from_the_beginning(site: Site) -> None:
    """A response with the complete file replaces the bytes received before."""
    site.takes_ranges = False
    site.break_after = [MIB]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert 2 == len(site.requests)


@pytest.mark.parametrize("etag", ['"1"', None, 'W/"1"'])
def test_a_file_that_changes_between_attempts(site: Site, home: Path, etag: str | None) -> None:
    """With a validator the server sends the new file. Without one, the digest is wrong, and the download restarts."""
    old = bytes(reversed(CONTENT))
    site.content, site.etag, site.break_after = old, etag, [MIB]

    def change() -> None:
        site.content, site.etag = CONTENT, '"2"' if etag == '"1"' else etag

    site.after_break = change
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert [] == leftovers(home)


def test_a_server_that_sends_another_range(site: Site) -> None:
    """A response with another part of the file than requested is not used."""
    site.range_lie, site.break_after = 1, [MIB]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert [False, True, False] == [r is not None for r in site.ranges]


def test_the_proxy_of_the_environment_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that only the proxy can reach."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.port}")
    url = "http://images.invalid/box.img"
    assert CONTENT == fetched(RemoteImage(url, digest_of(CONTENT))).disk.read_bytes()
    assert [url] == site.paths


def test_a_wrong_digest_is_refused(site: Site, home: Path) -> None:
    """The error has both digests, and the file is removed."""
    error = refusal(site.url, b"another")
    expected = {"url": site.url, "expected": digest_of(b"another"), "actual": digest_of(CONTENT)}
    assert ("checksum-mismatch", expected) == (error.code, error.fields)
    assert [] == [digest for digest in (digest_of(b"another"), digest_of(CONTENT)) if digest not in error.message]
    assert [] == leftovers(home)
    assert images.find(digest_of(b"another")[7:]) is None


def test_a_damaged_part_is_downloaded_again(site: Site, home: Path) -> None:
    """A part that a power failure has damaged, complete or not, is replaced by a second download."""
    key = digest_of(CONTENT)[7:]
    for size in (MIB, len(CONTENT), len(CONTENT) + 5):
        part = home / "downloads" / f"{key}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"\1" * size)
        assert CONTENT == fetched(RemoteImage(site.url, f"sha256:{key}")).disk.read_bytes()
        shutil.rmtree(home / "images")
    assert [] == leftovers(home)


def test_a_complete_part_needs_no_server(home: Path) -> None:
    """After SIGKILL between download and store, nothing is downloaded again."""
    key = digest_of(CONTENT)[7:]
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / f"{key}.part").write_bytes(CONTENT)
    assert CONTENT == fetched(RemoteImage("http://127.0.0.1:1/x", f"sha256:{key}")).disk.read_bytes()


@pytest.mark.parametrize("lie", [1000, -1000])
def test_a_server_that_lies_about_the_length(site: Site, home: Path, lie: int) -> None:
    """Only the digest decides: a file that is shorter than announced is complete, a truncated one is refused."""
    site.lie = lie
    if lie > 0:
        assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    else:
        with refused(ImageError, "checksum-mismatch", actual=digest_of(CONTENT[:lie])):
            fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert [] == leftovers(home)


def test_a_response_without_a_length(site: Site) -> None:
    """The end of the connection is the end of the file."""
    site.tells_length = False
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()


@pytest.mark.parametrize("drip_s", [0.0, 0.05])
def test_a_server_that_stalls(site: Site, drip_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bytes, or only single bytes: each attempt ends after the timeout, and the download fails."""
    monkeypatch.setattr(http, "STALL_S", 0.25)
    site.drip_s = drip_s
    started = time.monotonic()
    with refused(ImageError, "download-failed", reason="stalled"):
        fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (500, 4), (503, 4), (204, 1)])
def test_other_status_codes(site: Site, home: Path, status: int, attempts: int) -> None:
    """A transient failure is retried, any other is final. The error has the status code."""
    site.statuses = [status] * 9
    with refused(ImageError, "download-failed", url=site.url, status=str(status)) as caught:
        fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert str(status) in caught.value.message
    assert attempts == len(site.requests)


def test_a_server_that_recovers(site: Site) -> None:
    """A transient failure only delays the download."""
    site.statuses = [500, 503]
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("/box.img", "download-failed"),
        ("file:///etc/passwd", "download-failed"),
        ("ftp://127.0.0.1/x", "bad-url"),
        ("gopher://127.0.0.1/x", "download-failed"),
    ],
)
def test_redirects_are_limited(site: Site, location: str, code: str) -> None:
    """A redirect loop ends after MAX_REDIRECTS. kimbox follows redirects to http and https only."""
    site.location = location
    with refused(ImageError, code, url=site.url) as caught:
        fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert "redirects" in caught.value.message
    assert len(site.requests) <= connection.MAX_REDIRECTS + 2


def test_a_redirect_is_followed(site: Site) -> None:
    """To the file at another server."""
    with serving(b"") as first:
        first.location = site.url
        assert CONTENT == fetched(RemoteImage(first.url, digest_of(CONTENT))).disk.read_bytes()


def test_a_refused_connection_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the server."""
    monkeypatch.setattr(http, "PAUSES_S", ())
    with refused(ImageError, "server-unreachable", server="127.0.0.1:1") as caught:
        fetched(RemoteImage("http://127.0.0.1:1/box.img", digest_of(CONTENT)))
    assert "cannot be reached" in caught.value.message


def test_a_file_that_is_too_large(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length that exceeds the limit is refused before a byte is received; without a length, as soon as it does."""
    image = RemoteImage(site.url, digest_of(CONTENT))
    monkeypatch.setattr(http, "MAX_BYTES", MIB)
    with refused(ImageError, "file-too-large", url=site.url, received_bytes="0"):
        fetched(image)
    site.tells_length = False
    with refused(ImageError, "file-too-large", url=site.url) as caught:
        fetched(image)
    assert 0 < int(caught.value.fields["received_bytes"]) <= MIB


def test_a_download_needs_free_space(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length that exceeds the free space of the disk is refused before a byte is received."""
    free = shutil.disk_usage(tmp_path)._replace(free=MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with refused(KimboxError, "no-space", need_bytes=str(len(CONTENT)), free_bytes=str(MIB)):
        fetched(RemoteImage(site.url, digest_of(CONTENT)))


#: A kimbox process that kills itself after it has received half a MiB.
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
    """Runs another kimbox process that downloads the image and is killed."""
    env = {"PYTHONPATH": PYTHONPATH, "KIMBOX_HOME": str(home), "no_proxy": "*"}
    return run([sys.executable, "-c", KILLED, site.url, digest_of(CONTENT)], env=env, check=False)


def test_a_killed_download_is_continued(site: Site, home: Path) -> None:
    """The next call continues the download of the killed process, and no file of that process is left."""
    assert -9 == fetch_and_die(site, home).code
    part = home / "downloads" / f"{digest_of(CONTENT)[7:]}.part"
    received_bytes = part.stat().st_size
    assert received_bytes > 0
    assert CONTENT == fetched(RemoteImage(site.url, digest_of(CONTENT))).disk.read_bytes()
    assert f"bytes={received_bytes}-" == site.ranges[-1]
    assert [] == leftovers(home)


def test_old_downloads_are_removed(site: Site, home: Path) -> None:
    """A download removes old partial downloads of other images, but not recent ones."""
    folder = paths.downloads_dir()
    folder.mkdir(parents=True)
    for name, age in (("a" * 64, downloads.PARTIAL_KEPT_S + 60), ("b" * 64, 60)):
        (folder / f"{name}.part").write_bytes(b"x")
        os.utime(folder / f"{name}.part", (time.time() - age,) * 2)
    own = folder / f"{digest_of(CONTENT)[7:]}.part"
    own.write_bytes(CONTENT[:MIB])
    os.utime(own, (1, 1))
    fetched(RemoteImage(site.url, digest_of(CONTENT)))
    assert [f"bytes={MIB}-"] == site.ranges
    assert ["b" * 64 + ".part"] == [p.name for p in folder.iterdir()]


def test_a_file_is_copied_with_its_holes(tmp_path: Path, home: Path) -> None:
    """The store has a copy that is as sparse as the original. A later change of the original does not affect it."""
    source = tmp_path / "disk.img"
    with source.open("wb") as file:
        file.write(CONTENT[:70000])
        file.truncate(64 * MIB)
    digest = files.sha256_file(source)
    image = fetched(RemoteImage(str(source), digest))
    source.write_bytes(b"changed")
    assert digest == files.sha256_file(image.disk)
    assert image.disk.stat().st_blocks * 512 < MIB
    assert [] == leftovers(home)


def test_files_that_cannot_be_used(tmp_path: Path, home: Path) -> None:
    """A missing file, a folder and a FIFO are refused. The error of a wrong digest has both digests."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "disk").write_bytes(CONTENT)
    for path, code in (
        (tmp_path / "none", "file-not-found"),
        (tmp_path, "not-a-regular-file"),
        (tmp_path / "fifo", "not-a-regular-file"),
    ):
        error = refusal(path)
        assert (code, str(path)) == (error.code, error.fields["path"])
    error = refusal(tmp_path / "disk", b"another")
    expected = {"path": str(tmp_path / "disk"), "expected": digest_of(b"another"), "actual": digest_of(CONTENT)}
    assert ("checksum-mismatch", expected) == (error.code, error.fields)
    assert [] == [digest for digest in (digest_of(b"another"), digest_of(CONTENT)) if digest not in error.message]
    assert [] == leftovers(home)
