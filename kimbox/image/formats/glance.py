"""The properties with which OpenStack's image service (Glance) offers an image of kimbox. Pure.

They are the body of a request that creates an image (Image API v2, POST /v2/images). The properties hw_* give an
instance the devices whose drivers the images have; the config drive is a CD-ROM, for which Nova needs a controller.
Source: the table "Useful image properties" in Glance's documentation.
"""

from __future__ import annotations

import re
from typing import Any

#: Format of the disk in Glance.
DISK_FORMAT = "qcow2"

#: Tag of every image of kimbox, and prefix of the tag with the key of the image.
TAG, KEY_PREFIX = "kimbox", "kimbox-image-"

#: Property with the sha512 hex digest of the disk, which is set before the upload.
DIGEST = "kimbox_sha512"

#: The devices and the login that an image of kimbox has.
PROPERTIES = {
    "architecture": "x86_64",
    "hw_cdrom_bus": "scsi",
    "hw_disk_bus": "virtio",
    "hw_firmware_type": "bios",
    "hw_rng_model": "virtio",
    "hw_scsi_model": "virtio-scsi",
    "hw_vif_model": "virtio",
    "os_admin_user": "vagrant",
    "os_type": "linux",
}

#: Minimum memory of an instance, in MiB: a box with less cannot work.
MIN_RAM_MIB = 256

_DISTRIBUTION = re.compile(r"[a-z][a-z0-9-]{0,30}")
_GIB = 1 << 30


def key_tag(key: str) -> str:
    """Returns the tag by which the image with this key is found."""
    return f"{KEY_PREFIX}{key}"


def request(name: str, key: str, virtual_bytes: int, distribution: str) -> dict[str, Any]:
    """Returns the body of the request: an image of kimbox with its key, and the size of its disk as the guest sees it.

    `distribution`: the ID of os-release(5). It is left out if Glance would not accept it.
    """
    properties = dict(PROPERTIES)
    if _DISTRIBUTION.fullmatch(distribution):
        properties["os_distro"] = distribution
    return {
        "name": name,
        "disk_format": DISK_FORMAT,
        "container_format": "bare",
        "visibility": "private",
        "min_disk": -(-virtual_bytes // _GIB),
        "min_ram": MIN_RAM_MIB,
        "tags": [TAG, key_tag(key)],
        "kimbox_image": key,
        **properties,
    }
