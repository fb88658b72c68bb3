"""The disk that cloud-init reads in a guest whose image kimbox did not build: a small ISO 9660 file system."""

from __future__ import annotations

import uuid
from pathlib import Path

from kimbox.files import write_atomic
from kimbox.image.formats import iso9660
from kimbox.render import cloudinit


def new_instance() -> str:
    """Returns the id of an instance that does not exist yet."""
    return f"kimbox-{uuid.uuid4()}"


def write(target: Path, name: str, instance: str, account: str, public_key: str) -> None:
    """Writes the disk for the machine `name` and its instance, or replaces it atomically.

    The owner of `public_key` may log into `account`.
    """
    files = {
        cloudinit.USER_DATA: cloudinit.user_data(account, public_key),
        cloudinit.META_DATA: cloudinit.meta_data(name, instance),
    }
    write_atomic(target, iso9660.write(cloudinit.LABEL, files), mode=0o600)
