"""An image made for tests, and what taking it into the store leaves behind."""

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
    """Something like a disk: an MBR, some data, a long run of zeros, some more data."""
    data = bytearray(size)
    data[:512] = bytes(510) + b"\x55\xaa"
    for start in (4096, size - 70000):
        data[start : start + 60000] = b"".join(
            hashlib.sha256(bytes([i % 256, start % 251])).digest() for i in range(1875)
        )
    return bytes(data)


CONTENT = disk_bytes()


def digest_of(content: bytes) -> str:
    """As a spec has it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def leftovers(home: Path) -> list[str]:
    """All in the home that is neither an image nor a lock."""
    images = {str(p.relative_to(home)) for p in (home / "images").glob("*") if p.suffix not in (".lock", ".lease")}
    downloads = {str(p.relative_to(home)) for p in (home / "downloads").glob("*")}
    return sorted(n for n in images | downloads if len(Path(n).name) != 64)


def fetched(image: RemoteImage) -> Image:
    """The image in a file or at a URL, taken into the store."""
    with obtain.leased_file(image) as found:
        return found


def refusal(location: str | Path, content: bytes = CONTENT) -> KimboxError:
    """Adds an image to the store, with the digest of `content`, and returns the error that this raises."""
    with pytest.raises(KimboxError) as caught:
        fetched(RemoteImage(str(location), digest_of(content)))
    return caught.value


def refused(location: str | Path, content: bytes = CONTENT) -> str:
    """Message and hint of `refusal`."""
    error = refusal(location, content)
    return f"{error.message} ({error.hint})"
