"""An image for tests, and the files that remain after the store has read it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kimbox.errors import KimboxError
from kimbox.image import obtain
from kimbox.image.store.images import Image
from kimbox.spec.model import RemoteImage

MIB = 1 << 20


def disk_bytes(size: int = 3 * MIB) -> bytes:
    """Returns the content of a disk: an MBR, data, a long run of zeros, more data."""
    data = bytearray(size)
    data[:512] = bytes(510) + b"\x55\xaa"
    for start in (4096, size - 70000):
        data[start : start + 60000] = b"".join(
            hashlib.sha256(bytes([i % 256, start % 251])).digest() for i in range(1875)
        )
    return bytes(data)


CONTENT = disk_bytes()


def digest_of(content: bytes) -> str:
    """Returns the digest of a content as a spec contains it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def leftovers(home: Path) -> list[str]:
    """Returns the names of all entries of images/ and downloads/ that are not an image, a lock or a lease."""
    images = {str(p.relative_to(home)) for p in (home / "images").glob("*") if p.suffix not in (".lock", ".lease")}
    downloads = {str(p.relative_to(home)) for p in (home / "downloads").glob("*")}
    return sorted(n for n in images | downloads if len(Path(n).name) != 64)


def fetched(image: RemoteImage) -> Image:
    """Puts the image in a file or at a URL into the store and returns it."""
    with obtain.leased_file(image) as stored:
        return stored


def refusal(location: str | Path, content: bytes = CONTENT) -> KimboxError:
    """Adds an image to the store, with the digest of `content`, and returns the error that this raises."""
    with pytest.raises(KimboxError) as caught:
        fetched(RemoteImage(str(location), digest_of(content)))
    return caught.value


def refused(location: str | Path, content: bytes = CONTENT) -> str:
    """Message and hint of `refusal`."""
    error = refusal(location, content)
    return f"{error.message} ({error.hint})"
