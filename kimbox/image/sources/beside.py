"""Checksums beside a disk or an OVA, and their signature, as `kimbox package --sign` writes them.

A Vagrant box has them inside. Other formats have them in the same folder: `NAME.SHA256SUMS` or `SHA256SUMS`, each with
a `.sig` file. They are untrusted input until the signature is verified.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from kimbox import paths
from kimbox.errors import ImageError, KimboxError
from kimbox.files import read_bounded
from kimbox.image.formats import sums
from kimbox.spec.urls import is_url
from kimbox.transfer import http
from kimbox.transfer.address import Login, public_url

#: Maximum size of a checksum file or a signature, in bytes.
MAX_BYTES = 1 << 20

#: Suffix of files that have their checksums inside.
_BOX_SUFFIX = ".box"


def is_signed(location: str, digest: str, keys: tuple[str, ...], login: Login | None = None) -> bool:
    """Whether one of the ssh keys has signed checksums beside the path or URL of a file, which list its digest.

    `digest`: the SHA-256 hex digest of the file. `login` as for `http.fetch`. False if there are no checksums of this
    file. Raises ImageError: `checksum-mismatch` if they list another digest for it, `signature-missing` or
    `signature-wrong`.
    """
    name = urllib.parse.unquote(public_url(location)) if is_url(location) else location
    name = name.rpartition("/")[2]
    if name.endswith(_BOX_SUFFIX):
        return False
    for place, data in _checksums(location, name, login):
        expected = sums.parse(data).get(name)
        if expected is None:
            continue
        if expected != digest:
            raise ImageError(
                f"{name!r} has another SHA-256 digest than in {place}",
                code="checksum-mismatch",
                fields={"name": name, "state": "different"},
            )
        sums.verify(data, _read(f"{place}.sig", login), keys)
        return True
    return False


def _checksums(location: str, name: str, login: Login | None) -> Iterator[tuple[str, bytes]]:
    """Path or URL, and content, of each checksum file beside a file."""
    stem = name.rpartition(".")[0]
    for candidate in filter(None, (stem and f"{stem}.{sums.NAME}", sums.NAME)):
        if is_url(location):
            place = urllib.parse.urljoin(location, urllib.parse.quote(candidate))
        else:
            place = str(Path(location).with_name(candidate))
        if data := _read(place, login):
            yield place, data


def _read(place: str, login: Login | None) -> bytes | None:
    """A small file at a path or URL, or None if it is missing or too large."""
    try:
        if not is_url(place):
            return read_bounded(Path(place), limit_bytes=MAX_BYTES)
        folder = paths.downloads_dir()
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"sums-{os.getpid()}.part"
        try:
            http.fetch(place, part, None, limit_bytes=MAX_BYTES, login=login)
            return read_bounded(part, limit_bytes=MAX_BYTES)
        finally:
            http.discard(part)
    except (OSError, KimboxError):
        return None
