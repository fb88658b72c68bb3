"""Boxes from a catalog: the requested version with its checksum, and catalogs that are hostile."""

from __future__ import annotations

import functools
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import makevagrant
import ownhome
import pytest
from makevagrant import archive, metadata
from refused import refused
from takenimage import digest_of
from webfolder import serving

from kimbox.actions import boxes as boxes
from kimbox.errors import ImageError, KimboxError
from kimbox.image.formats import catalog
from kimbox.image.sources import boxcatalog
from kimbox.image.store import names
from kimbox.log import log
from kimbox.run import run, which

add = functools.partial(boxes.add, digest=None, keys=(), force=False)


home = ownhome.home  # a fixture


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder with two versions of a box, each for two providers."""
    folder = tmp_path / "pub lic"
    raw = makevagrant.raw_disk(tmp_path / "disk.raw")
    for version in ("1.9", "1.10"):
        (folder / version).mkdir(parents=True)
        text = ("Vagrantfile", version.encode())
        qcow2, vmdk = makevagrant.converted(raw, "qcow2"), makevagrant.converted(raw, "vmdk")
        (folder / version / "v.box").write_bytes(archive(metadata("virtualbox"), text, ("a.vmdk", vmdk)))
        (folder / version / "l.box").write_bytes(archive(metadata(), text, ("box.img", qcow2), compress="xz"))
    return folder


def publish(folder: Path, url: str) -> Path:
    """Writes the catalog, as `kimbox package` does."""
    for version in ("1.10", "1.9"):
        files = {"virtualbox": f"{version}/v.box", "libvirt": f"{version}/l.box"}
        found = {
            provider: (path, digest_of((folder / path).read_bytes()).removeprefix("sha256:"))
            for provider, path in files.items()
        }
        catalog.add(folder / "x.metadata.json", "x", "", version, url, found)
    return folder / "x.metadata.json"


def test_from_a_server(public: Path) -> None:
    """The newest version, or the requested one; for libvirt if there is a choice; only with its checksum."""
    with serving(public) as port:
        url = f"http://127.0.0.1:{port}"
        publish(public, url)
        newest = add("x", f"{url}/x.metadata.json?token=secret")
        assert ("1.10", "libvirt", f"{url}/1.10/l.box") == (newest.version, newest.provider, newest.location)
        assert digest_of((public / "1.10/l.box").read_bytes()) == newest.digest
        older = add("y", f"{url}/x.metadata.json", version="1.9")
        assert digest_of((public / "1.9/l.box").read_bytes()) == older.digest
        assert [newest, older] == list(names.every())
        with refused(ImageError, "version-not-found", version="2", known="1.9, 1.10") as caught:
            add("z", f"{url}/x.metadata.json", version="2")
        assert "1.9, 1.10" in str(caught.value.hint)
        (public / "1.9/l.box").write_bytes((public / "1.10/l.box").read_bytes() + bytes(512))
        boxes.remove(["y"])
        with refused(ImageError, "checksum-mismatch", expected=older.digest):
            add("y", f"{url}/x.metadata.json", version="1.9")


@pytest.mark.parametrize("url", ["", "file://{folder}", "."])
def test_from_a_folder(public: Path, url: str) -> None:
    """A catalog may refer to the boxes beside it with a relative path."""
    file = publish(public, url.format(folder=str(public).replace(" ", "%20")))
    if not url:
        file.write_text(file.read_text().replace('"/1', '"1'))
    added = add("x", str(file))
    assert ("1.10", "libvirt") == (added.version, added.provider)


def offer(**more: object) -> dict[str, Any]:
    """A catalog of one box; `more` changes the entry of the box."""
    entry = {"name": "libvirt", "url": "http://h/x.box", "checksum_type": "sha256", "checksum": "a" * 64}
    return {"versions": [{"version": "1", "providers": [entry | more]}]}


#: Name -> a catalog, and the code and fields of the error.
HOSTILE: dict[str, tuple[Any, str, dict[str, str]]] = {
    "list": ([], "bad-catalog", {}),
    "deep": ("[" * 100_000, "bad-catalog", {}),
    "no versions": ({"name": "x"}, "bad-catalog", {"missing": "versions"}),
    "versions": (
        {"versions": ["1", {"version": 2}, {"version": "1\n", "providers": []}]}, "version-not-found", {"known": ""}
    ),
    "providers": ({"versions": [{"version": "1", "providers": "libvirt"}]}, "unsupported-provider", {"providers": ""}),
    "another": (offer(name="hyperv"), "unsupported-provider", {"providers": "hyperv"}),
    "revoked": (
        {"versions": [{"version": "1", "status": "revoked", "providers": []}]}, "version-not-found", {"known": ""}
    ),
    "a file of this machine": (offer(url="file:///etc/passwd"), "bad-url", {}),
    "an option": (offer(url="http://h/-x y"), "bad-url", {}),
    "a number": (offer(url=1 << 80), "wrong-type", {}),
    "arm64": (offer(architecture="arm64"), "unsupported-architecture", {"architecture": "arm64"}),
    "odd architecture": (offer(architecture=["amd64"]), "unsupported-architecture", {"architecture": "['amd64']"}),
    "md5": (offer(checksum_type="md5", checksum="a" * 32), "bad-digest", {}),
    "checksum": (offer(checksum=["a"]), "bad-digest", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_catalogs(tmp_path: Path, name: str, home: Path) -> None:
    """Each catalog is refused with its reason, and no file is left."""
    value, code, fields = HOSTILE[name]
    (tmp_path / "web").mkdir()
    (tmp_path / "web/x.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with serving(tmp_path / "web") as port, refused(ImageError, code, **fields):
        add("x", f"http://127.0.0.1:{port}/x.json")
    assert [] == list((home / "downloads").iterdir())


@pytest.mark.parametrize(
    ("url", "words"), [("file:///etc/passwd", "not http or https"), ("http://h/-x y", "cannot contain spaces")]
)
def test_the_reason_for_refusing_a_url_is_in_the_message(tmp_path: Path, url: str, words: str) -> None:
    """The code is the same for each invalid URL."""
    (tmp_path / "x.json").write_text(json.dumps(offer(url=url)))
    with serving(tmp_path) as port, refused(ImageError, "bad-url", version="1") as caught:
        add("x", f"http://127.0.0.1:{port}/x.json")
    assert words in caught.value.message


#: Entries of versions, as provider and architecture -> the version and the index of the entry that kimbox uses.
ENTRIES: dict[str, tuple[dict[str, list[tuple[str, str | None]]], tuple[str, int]]] = {
    "this one": ({"1": [("libvirt", "amd64"), ("libvirt", "arm64"), ("libvirt", "ppc64le")]}, ("1", 0)),
    "last": ({"1": [("libvirt", "arm64"), ("libvirt", "x86_64")]}, ("1", 1)),
    "no name": ({"1": [("libvirt", None), ("libvirt", "arm64")]}, ("1", 0)),
    "name over none": ({"1": [("libvirt", "amd64"), ("libvirt", "unknown")]}, ("1", 0)),
    "another provider": ({"1": [("libvirt", "arm64"), ("virtualbox", "amd64")]}, ("1", 1)),
    "an older version": ({"1": [("libvirt", "amd64")], "2": [("libvirt", "arm64")], "3": [("hyperv", None)]}, ("1", 0)),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_architecture(tmp_path: Path, name: str) -> None:
    """The box for amd64, or one without an architecture, of the newest version that has one."""
    versions, (version, index) = ENTRIES[name]
    entries = {
        v: [
            {"name": p, "url": f"{v}-{at}.box", "checksum_type": "sha256", "checksum": "a" * 64, "architecture": a}
            for at, (p, a) in enumerate(offered)
        ]
        for v, offered in versions.items()
    }
    text = json.dumps({"versions": [{"version": v, "providers": offered} for v, offered in entries.items()]})
    (tmp_path / "x.json").write_text(text)
    found = boxcatalog.choose(str(tmp_path / "x.json"), None)
    assert (version, str(tmp_path / f"{version}-{index}.box")) == (found.version, found.location)
    with refused(ImageError, "version-not-found"):
        boxcatalog.choose(str(tmp_path / "x.json"), "9")


def test_a_catalog_that_is_too_large(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server and from a folder; a missing catalog is another error."""
    monkeypatch.setattr(boxcatalog, "MAX_BYTES", 1000)
    (tmp_path / "x.json").write_text(json.dumps(offer(more="x" * 1000)))
    with serving(tmp_path) as port, refused(ImageError, "file-too-large", url=f"http://127.0.0.1:{port}/x.json"):
        add("x", f"http://127.0.0.1:{port}/x.json")
    with refused(ImageError, "file-too-large", catalog=str(tmp_path / "x.json")):
        add("x", str(tmp_path / "x.json"))
    with refused(ImageError, "file-not-found", catalog=str(tmp_path / "y.json")):
        add("x", str(tmp_path / "y.json"))


@pytest.mark.parametrize("url", ["file:///tmp/a%00b", "a%00b.box", "%1b[2J.box"])
def test_a_path_in_a_local_catalog_that_no_file_has(tmp_path: Path, url: str) -> None:
    """The catalog is refused. A path with a NUL raised an exception of Python."""
    (tmp_path / "x.json").write_text(json.dumps(offer(url=url)))
    with refused(ImageError, "bad-path", version="1"):
        add("x", str(tmp_path / "x.json"))


def test_a_local_file_that_never_ends(tmp_path: Path) -> None:
    """A FIFO and a device are refused as a catalog and as a box, at once."""
    os.mkfifo(tmp_path / "x.json")
    with refused(ImageError, "not-a-regular-file", catalog=str(tmp_path / "x.json")):
        add("x", str(tmp_path / "x.json"))
    for location in ("/dev/zero", str(tmp_path / "x.json")):
        with refused(KimboxError, "not-a-regular-file"):
            boxes._digest(location, None)


@pytest.mark.parametrize(
    "text", ["[" + "[]," * 1_000_000 + "[]]", '{"a":' * 1_000_000, '{"versions": [' + "{}," * 1_000_000]
)
def test_a_catalog_of_very_many_values(tmp_path: Path, text: str) -> None:
    """It is refused before it is parsed: in memory, a value takes up to 50 times the space of its text."""
    (tmp_path / "x.json").write_text(text)
    tracemalloc.start()
    with refused(ImageError, "bad-catalog", catalog=str(tmp_path / "x.json")):
        add("x", str(tmp_path / "x.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def test_a_scheme_in_capital_letters_is_the_same_scheme(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`HTTP://` is not encrypted either: kimbox warns."""
    warned: list[str] = []
    monkeypatch.setattr(log, "warn", warned.append)
    with serving(public) as port:
        url = f"http://127.0.0.1:{port}"
        publish(public, url)
        add("x", f"{url}/x.metadata.json")
        add("y", f"HTTP{url[4:]}/x.metadata.json")
    assert 2 == len(warned)


def test_a_checksum_from_an_insecure_server_warns(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checksum received over http does not prove the box. A digest that the user passes does."""
    warned: list[str] = []
    monkeypatch.setattr(log, "warn", warned.append)
    with serving(public) as port:
        url = f"http://127.0.0.1:{port}"
        publish(public, url)
        digest = add("x", f"{url}/x.metadata.json").digest
        assert [text.endswith(f"with that of its author: {digest}") for text in warned] == [True]
        add("x", f"{url}/x.metadata.json", digest=digest)
        assert 1 == len(warned)


def test_a_catalog_without_a_checksum(public: Path) -> None:
    """The box needs a digest, a signature, or the permission to accept any content."""
    entry = {"name": "libvirt", "url": "1.9/l.box"}
    file = public / "x.json"
    file.write_text(json.dumps({"versions": [{"version": "1.9", "providers": [entry]}]}))
    with refused(ImageError, "checksum-missing", version="1.9", catalog=str(file)) as caught:
        add("x", str(file))
    assert "--unverified" in str(caught.value.hint)
    assert [] == list(names.every())
    with refused(ImageError, "signature-missing"):
        add("x", str(file), keys=("ssh-ed25519 AAAA",))
    digest = digest_of((public / "1.9/l.box").read_bytes())
    assert digest == add("x", str(file), digest=digest).digest == add("y", str(file), is_unverified=True).digest


@pytest.mark.skipif(not which("ruby"), reason="script/bootstrap test brings ruby")
def test_the_order_is_that_of_vagrant() -> None:
    """Versions of many forms are sorted as Gem::Version sorts them."""
    known = ["1", "1.0", "1.0.1", "1.10", "1.9", "2.0.rc1", "2.0.0", "2.0.beta2", "2.0.beta10", "2026.1", "2025.12.31"]
    known = known[::3] + known[1::3] + known[2::3]
    script = "require 'rubygems'; puts ARGV.map { |v| Gem::Version.new(v) }.sort"
    expected = run(["ruby", "-e", script, *known]).stdout.split()
    actual = sorted(known, key=boxcatalog.order)
    assert [boxcatalog.order(v) for v in expected] == [boxcatalog.order(v) for v in actual]
