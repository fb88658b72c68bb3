"""Publishing with real services: Keystone and Glance of OpenStack, through openstacksdk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import makebox
import openstackservices
import pytest
from refused import refused

from kimbox import run
from kimbox.drivers.openstack import publishing, sdk
from kimbox.drivers.openstack.sdk import Sdk
from kimbox.errors import ImageError, KimboxError
from kimbox.image.formats import glance
from kimbox.image.store.images import Image
from kimbox.spec.model import Box

KEY = "a" * 64


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clouds.yaml with the cloud `test`."""
    with openstackservices.running(tmp_path_factory.mktemp("openstack")) as file:
        yield file


@pytest.fixture
def cloud(clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sdk]:
    """A connection as the driver opens it. At its end the cloud has no image."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    cloud = sdk.connect("test")
    yield cloud
    publishing.unpublish(cloud, KEY)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image with some content."""
    disk = tmp_path / "disk.raw"
    run.run(["mke2fs", "-q", "-d", Path(__file__).parent, disk, "16M"])
    return Image(KEY, disk, "raw", {"virtual_bytes": 16 << 20})


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return makebox.make_box(tmp_path)


def test_an_image_is_published_once(cloud: Sdk, image: Image, box: Box) -> None:
    """Glance has the disk, the digest, the tags and the properties; another box of the image finds it."""
    published, is_new = publishing.publish(cloud, image, box)
    assert is_new
    assert (published, False) == publishing.publish(cloud, image, attrs.evolve(box, name="other"))
    stored = cloud.connection.image.get(f"/images/{published.id}").json()
    wanted = {"status": "active", "disk_format": "qcow2", "min_disk": 1, "visibility": "private", "os_distro": "debian"}
    wanted |= {"hw_cdrom_bus": "scsi", "hw_scsi_model": "virtio-scsi", "os_hash_value": published.announced}
    assert wanted == {name: stored[name] for name in wanted}
    assert {"kimbox", glance.key_tag(KEY)} == set(stored["tags"])
    downloaded = image.disk.with_name("downloaded")
    downloaded.write_bytes(cloud.connection.image.download_image(published.id).content)
    run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", downloaded, image.disk])
    assert 1 == publishing.unpublish(cloud, KEY)
    assert [] == cloud.images(tag=glance.key_tag(KEY))


def test_what_an_interrupted_upload_left(cloud: Sdk, image: Image, box: Box) -> None:
    """Glance has an image without a disk, and one whose disk is not what was announced: both are replaced."""
    request = glance.request("left", KEY, 1 << 20, "debian") | {glance.DIGEST: "0" * 128}
    cloud.create_image(request)
    small = image.disk.with_name("small.qcow2")
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", small, "1M"])
    cloud.upload(cloud.create_image(request), small)
    assert 2 == len(cloud.images(tag=glance.key_tag(KEY)))
    assert publishing.find(cloud, KEY) is None
    published, is_new = publishing.publish(cloud, image, box)
    assert (True, [published]) == (is_new, cloud.images(tag=glance.key_tag(KEY)))


def test_a_disk_that_glance_refuses(cloud: Sdk, image: Image, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not a qcow2 (415). Nothing of it stays."""
    monkeypatch.setattr(publishing, "convert", lambda _, __, target, ___: target.write_bytes(b"x" * 100_000))
    with refused(KimboxError, "image-refused"):
        publishing.publish(cloud, image, box)
    assert [] == cloud.images(tag=glance.key_tag(KEY))


def test_an_upload_that_is_cut_off(cloud: Sdk, image: Image, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glance receives a part of the disk without an error: the digest shows it, and nothing stays."""
    upload = Sdk.upload

    def cut(self: Sdk, target: str, disk: Path) -> None:
        part = disk.with_name("part")
        part.write_bytes(disk.read_bytes()[:-4096])
        upload(self, target, part)

    monkeypatch.setattr(Sdk, "upload", cut)
    with refused(ImageError, "checksum-mismatch"):
        publishing.publish(cloud, image, box)
    assert [] == cloud.images(tag=glance.key_tag(KEY))


def test_a_token_that_ends(cloud: Sdk, image: Image, box: Box) -> None:
    """The next request gets another one, also if it is an upload, which needs all of the file."""
    openstackservices.revoke(cloud)
    assert [] == cloud.images(name="x")
    openstackservices.revoke(cloud)
    assert publishing.publish(cloud, image, box)[1]


def test_a_login_that_is_refused(clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password, and a cloud that is not in clouds.yaml: an error without the password."""
    other = tmp_path / "clouds.yaml"
    other.write_text(clouds.read_text().replace('"secret"', '"guess"'))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(other))
    for name in ("test", "nowhere"):
        with refused(KimboxError, "cloud-login", cloud=name) as caught:
            sdk.connect(name)
        assert "guess" not in str(caught.value)
