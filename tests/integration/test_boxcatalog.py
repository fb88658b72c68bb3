"""Boxes from a catalog: the version that is meant, with its checksum; what a stranger's catalog may not say."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import makevagrant
import ownhome
import pytest
from makevagrant import archive, metadata
from takenimage import digest_of
from webfolder import serving

from kimbox.actions import boxes as boxes
from kimbox.errors import ImageError
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
    """The newest version, or the one that is named; for libvirt where there is a choice; only with its checksum."""
    with serving(public) as port:
        url = f"http://127.0.0.1:{port}"
        publish(public, url)
        newest = add("x", f"{url}/x.metadata.json?token=secret")
        assert ("1.10", "libvirt", f"{url}/1.10/l.box") == (newest.version, newest.provider, newest.location)
        assert digest_of((public / "1.10/l.box").read_bytes()) == newest.digest
        older = add("y", f"{url}/x.metadata.json", version="1.9")
        assert digest_of((public / "1.9/l.box").read_bytes()) == older.digest
        assert [newest, older] == list(names.every())
        with pytest.raises(ImageError, match="no version 2") as refused:
            add("z", f"{url}/x.metadata.json", version="2")
        assert "1.9, 1.10" in str(refused.value.hint)
        (public / "1.9/l.box").write_bytes((public / "1.10/l.box").read_bytes() + bytes(512))
        boxes.remove(["y"])
        with pytest.raises(ImageError, match="not the one"):
            add("y", f"{url}/x.metadata.json", version="1.9")


@pytest.mark.parametrize("url", ["", "file://{folder}", "."])
def test_from_a_folder(public: Path, url: str) -> None:
    """What lies beside a catalog may be named from there."""
    file = publish(public, url.format(folder=str(public).replace(" ", "%20")))
    if not url:
        file.write_text(file.read_text().replace('"/1', '"1'))
    assert ("1.10", "libvirt") == ((one := add("x", str(file))).version, one.provider)


def offer(**more: object) -> dict[str, Any]:
    """A catalog of one box."""
    one = {"name": "libvirt", "url": "http://h/x.box", "checksum_type": "sha256", "checksum": "a" * 64}
    return {"versions": [{"version": "1", "providers": [one | more]}]}


HOSTILE: dict[str, tuple[Any, str]] = {
    "list": ([], "no JSON object"),
    "deep": ("[" * 100_000, "no JSON object"),
    "no versions": ({"name": "x"}, "no list of versions"),
    "versions": ({"versions": ["1", {"version": 2}, {"version": "1\n", "providers": []}]}, "no version at all"),
    "providers": ({"versions": [{"version": "1", "providers": "libvirt"}]}, "is for nothing"),
    "another": (offer(name="hyperv"), "is for hyperv"),
    "revoked": ({"versions": [{"version": "1", "status": "revoked", "providers": []}]}, "no version at all"),
    "a file of this machine": (offer(url="file:///etc/passwd"), "no place on a server"),
    "an option": (offer(url="http://h/-x y"), "cannot contain spaces"),
    "a number": (offer(url=1 << 80), "names no place"),
    "md5": (offer(checksum_type="md5", checksum="a" * 32), "no sha256"),
    "checksum": (offer(checksum=["a"]), "no sha256"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_catalogs(tmp_path: Path, name: str, home: Path) -> None:
    """Each is refused with the reason; nothing is left."""
    value, reason = HOSTILE[name]
    (tmp_path / "web").mkdir()
    (tmp_path / "web/x.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with serving(tmp_path / "web") as port, pytest.raises(ImageError, match=reason):
        add("x", f"http://127.0.0.1:{port}/x.json")
    assert [] == list((home / "downloads").iterdir())


def test_one_without_end(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog is small."""
    monkeypatch.setattr(boxcatalog, "MAX_BYTES", 1000)
    (tmp_path / "x.json").write_text(json.dumps(offer(more="x" * 1000)))
    with serving(tmp_path) as port, pytest.raises(ImageError, match="too large"):
        add("x", f"http://127.0.0.1:{port}/x.json")
    with pytest.raises(ImageError, match="or too much"):
        add("x", str(tmp_path / "x.json"))
    with pytest.raises(ImageError, match="cannot be read"):
        add("x", str(tmp_path / "y.json"))


def test_what_nothing_vouches_for(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checksum that came over http is no more than the box is; one that the user gives is."""
    warned: list[str] = []
    monkeypatch.setattr(log, "warn", warned.append)
    with serving(public) as port:
        url = f"http://127.0.0.1:{port}"
        publish(public, url)
        digest = add("x", f"{url}/x.metadata.json").digest
        assert ["nothing vouches" in text for text in warned] == [True]
        add("x", f"{url}/x.metadata.json", digest=digest)
        assert 1 == len(warned)


@pytest.mark.skipif(not which("ruby"), reason="script/bootstrap test brings ruby")
def test_the_order_is_that_of_vagrant() -> None:
    """Of versions as people write them, the newest is the one that Gem::Version takes for it."""
    known = ["1", "1.0", "1.0.1", "1.10", "1.9", "2.0.rc1", "2.0.0", "2.0.beta2", "2.0.beta10", "2026.1", "2025.12.31"]
    known = known[::3] + known[1::3] + known[2::3]
    script = "require 'rubygems'; puts ARGV.map { |v| Gem::Version.new(v) }.sort"
    wanted = run(["ruby", "-e", script, *known]).stdout.split()
    ours = sorted(known, key=boxcatalog._order)
    assert [boxcatalog._order(v) for v in wanted] == [boxcatalog._order(v) for v in ours]
