"""A catalog and its server are an attacker: what `box add --key` refuses.

The list is that of The Update Framework, "Attacks and weaknesses". A catalog that stays as it is (indefinite freeze) is
not noticed, because nothing in it has an end of validity. The tests of downloads have endless data and slow servers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import tinyimage
import tinypackage
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world
from tinypackage import Made

from kimbox import run

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures


@attrs.frozen
class Site:
    """Two signed versions in a catalog, and the author's key."""

    folder: Path
    key: Path
    kimbox: Kimbox

    @property
    def catalog(self) -> Path:
        return self.folder / "tiny.metadata.json"

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Changes the catalog, as an attacker who has the server can."""
        content = json.loads(self.catalog.read_text())
        edit(content)
        self.catalog.write_text(json.dumps(content))

    def add(self, *words: str) -> tuple[int, str]:
        """Adds the box with the author's key. Returns the exit status, and the error's code or the added version."""
        code, out, _ = self.kimbox(
            "--json", "box", "add", "mine", str(self.catalog), "--key", f"{self.key}.pub", *words
        )
        return code, error(out, "box")["code"] if code else result(out, "box")["added"]["version"]


@pytest.fixture
def site(made: Made, box: Path, kimbox: Kimbox, tmp_path: Path) -> Site:
    key = tmp_path / "key"
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", key])
    for version in ("1.0.0", "1.1.0"):
        made("-o", "public", "--catalog", f"file://{box}/public", "--version", version, "--sign", str(key))
    site = Site(box / "public", key, kimbox)
    site.change(lambda content: [provider.update(url=_path(provider)) for provider in _providers(content)])
    return site


def _providers(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [provider for version in content["versions"] for provider in version["providers"]]


def _path(provider: dict[str, Any]) -> str:
    return str(provider["url"]).removeprefix("file://")


def test_signed_versions_are_added(site: Site) -> None:
    """The newest one, and with --allow-older an older one in its place. Its version is recorded."""
    assert (0, "1.1.0") == site.add()
    assert (3, "version-older") == site.add("--version", "1.0.0", "--force")
    assert (0, "1.0.0") == site.add("--version", "1.0.0", "--force", "--allow-older")
    assert (0, "1.1.0") == site.add("--force")


def test_an_old_package_as_a_new_version(site: Site) -> None:
    """Rollback and fast-forward: a version 2.0.0 of the catalog that has the package of 1.0.0."""
    site.change(lambda content: content["versions"].append({**content["versions"][0], "version": "2.0.0"}))
    assert (3, "wrong-box") == site.add()


def test_another_box_of_the_author(site: Site) -> None:
    """Wrong software: the catalog has another name than the signed box."""
    site.change(lambda content: content.update(name="other"))
    assert (3, "wrong-box") == site.add()


def test_another_author(site: Site, tmp_path: Path) -> None:
    """Arbitrary software: a box with the signature of another key."""
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", tmp_path / "other"])
    assert (3, "signature-wrong") == attrs.evolve(site, key=tmp_path / "other").add()


def test_an_unsigned_package(site: Site, made: Made, box: Path) -> None:
    """With its own checksum in the catalog."""
    made("-o", "unsigned", "--catalog", f"file://{box}/unsigned", "--version", "3.0")
    shutil.copytree(box / "unsigned/3.0", site.folder / "3.0")
    entry = json.loads((box / "unsigned/tiny.metadata.json").read_text())["versions"][0]
    entry["providers"][0]["url"] = str(site.folder / "3.0/tiny-libvirt.box")
    site.change(lambda content: content["versions"].append(entry))
    assert (3, "signature-missing") == site.add()


def test_mixed_packages(site: Site, box: Path) -> None:
    """Mix and match: the disk of one version with the signed checksums of another."""
    boxes = [site.folder / f"{version}/tiny-libvirt.box" for version in ("1.0.0", "1.1.0")]
    for path in boxes:
        (box / path.parent.name).mkdir()
        run.run(["bsdtar", "-C", box / path.parent.name, "-xf", path])
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        shutil.copy(box / "1.0.0" / name, box / "1.1.0" / name)
    boxes[1].unlink()
    members = sorted(path.name for path in (box / "1.1.0").iterdir())
    run.run(["tar", "-C", box / "1.1.0", "-cf", boxes[1], *members])
    site.change(lambda content: [provider.pop("checksum") for provider in _providers(content)])
    assert (3, "checksum-mismatch") == site.add()
