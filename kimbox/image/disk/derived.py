"""UUIDs that depend on a text alone, so that equal inputs give equal disks. Pure."""

from __future__ import annotations

import uuid

#: Namespace of every UUID that kimbox derives.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:kimbox")


def derived_uuid(seed: str) -> uuid.UUID:
    """Returns a UUID that depends only on `seed`."""
    return uuid.uuid5(NAMESPACE, seed)
