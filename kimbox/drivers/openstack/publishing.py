"""Brings the image of a box into a cloud, once for each image key, and removes it.

The image in the cloud has a tag with the key, and a property with the digest of its disk, which is set before the
upload. Glance computes the digest of what it has received: only an image with this digest is used.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from kimbox import paths
from kimbox.drivers.openstack.cloud import Cloud, CloudImage, Status
from kimbox.errors import ImageError, KimboxError
from kimbox.files import locked
from kimbox.image.formats import glance
from kimbox.image.formats.boxwriter import OPENSTACK_QCOW2, convert
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.spec.model import Box, PackageImage

#: Maximum wait for another process that publishes the same image, in seconds.
PUBLISH_WAIT_S = 3600.0

#: Number of digits of the key in the name of the image.
NAME_DIGITS = 12

#: Number of uploads before a wrong digest is an error: a connection may break without an error.
ATTEMPTS = 2


def find(cloud: Cloud, key: str) -> CloudImage | None:
    """Returns the complete image with this key; None if the cloud does not have it."""
    return next((image for image in cloud.images(tag=glance.key_tag(key)) if _is_whole(image)), None)


def publish(cloud: Cloud, image: Image, box: Box) -> tuple[CloudImage, bool]:
    """Uploads the image of a box, unless the cloud has it. Returns it, and whether it was uploaded now.

    What an interrupted upload of this host left is removed first. Raises ImageError: `checksum-mismatch` if the cloud
    does not have what was sent, `image-refused` if it does not accept the disk.
    """
    work = paths.cloud_dir()
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    busy = "another kimbox process is publishing this image"
    with locked(work / f"{image.key}.lock", wait_s=PUBLISH_WAIT_S, busy=busy):
        if found := find(cloud, image.key):
            return found, False
        unpublish(cloud, image.key)
        with tempfile.TemporaryDirectory(prefix="publish-", dir=work) as folder:
            disk = Path(folder) / "disk.qcow2"
            with log.step("converting the image"):
                convert(image.disk, image.format, disk, OPENSTACK_QCOW2)
            with log.step(f"uploading {disk.stat().st_size / 1e6:.0f} MB"):
                return _upload(cloud, image, box, disk), True


def unpublish(cloud: Cloud, key: str) -> int:
    """Removes the images with this key, also incomplete ones. Returns their number."""
    found = cloud.images(tag=glance.key_tag(key))
    for image in found:
        cloud.delete_image(image.id)
    return len(found)


def _is_whole(image: CloudImage) -> bool:
    return image.status == Status.ACTIVE and bool(image.sha512) and image.sha512 == image.announced


def _upload(cloud: Cloud, image: Image, box: Box, disk: Path) -> CloudImage:
    with disk.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    distribution = box.image.distribution if isinstance(box.image, PackageImage) else ""
    name = f"{box.name}-{image.key[:NAME_DIGITS]}"
    request = glance.request(name, image.key, image.virtual_bytes, distribution)
    for _ in range(ATTEMPTS):
        created = cloud.create_image(request | {glance.DIGEST: digest})
        try:
            cloud.upload(created, disk)
            if found := find(cloud, image.key):
                return found
        except BaseException:
            _delete_quietly(cloud, created)
            raise
        cloud.delete_image(created)
        log.warn("the cloud did not receive what was sent: the upload is repeated")
    raise ImageError(
        f"the image of {box.name} in the cloud has another digest than what was sent",
        code="checksum-mismatch",
        hint="the connection may be faulty: run the same command again",
        fields={"name": box.name, "image": image.key},
    )


def _delete_quietly(cloud: Cloud, image: str) -> None:
    """Removes an image after an error, which is the one to report. The next upload removes what stays."""
    try:
        cloud.delete_image(image)
    except KimboxError as error:
        log.detail(f"an incomplete image stays in the cloud: {error}")
