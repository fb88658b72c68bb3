"""The disk on which a guest gets a manifest and its commits at a start: a tar archive on a raw disk, read-only.

provisioners/provision/root/usr/lib/kimbox/receive reads it in the guest. Imports no library for git.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Self

import attrs

from kimbox.files import sha256_file

#: Serial number of the disk. The guest finds the disk by it.
SERIAL = "kimbox-delivery"

#: QEMU and the guest count the size of a disk in sectors of this many bytes. An archive has whole sectors, because it
#: ends with a record of 20 blocks (tar(5)).
SECTOR_BYTES = 512

#: Number of random bytes in the name of a start.
START_BYTES = 16


@attrs.frozen
class DeliveryDisk:
    """What a guest is told of the disk, as the credential `kimbox.delivery`. None of it is secret."""

    #: sha256 hex digest of the manifest.
    digest: str
    #: Size of the disk, which is the archive.
    size_bytes: int
    #: sha256 hex digest of the archive.
    sha256: str
    #: Hex digits, different at each start. A guest takes the disk of a start once, also if it reboots by itself.
    start: str

    @classmethod
    def of(cls, digest: str, archive: Path) -> Self:
        """Describes an archive that contains the manifest with this digest, for a new start."""
        return cls(
            digest, archive.stat().st_size, sha256_file(archive).removeprefix("sha256:"), secrets.token_hex(START_BYTES)
        )

    def credential(self) -> str:
        """Returns the text of the credential: digest, size in bytes, sha256 and start, separated by blanks."""
        return f"{self.digest} {self.size_bytes} {self.sha256} {self.start}"


def discard(file: Path) -> None:
    """Removes the file of a disk that the guest has taken. QEMU may have it open, so its space is freed first."""
    if file.exists():
        os.truncate(file, 0)
        file.unlink()
