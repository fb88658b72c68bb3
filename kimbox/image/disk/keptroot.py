"""The volume in which a guest keeps a provisioned root: recognizes it, and reads its header.

provisioners/boot has its format (scripts/kimbox-kept) and its writer (/usr/lib/kimbox/kept). The guest can write
anything into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kimbox.image.disk.ext4.inodes import Read
from kimbox.spec.layout import MIB, SECTOR_BYTES, kept_name

#: Offset of the kept data in the volume.
DATA_OFFSET_BYTES = MIB

#: Boxes of former images write version 1, without the checksum.
_HEADER = re.compile(
    rb"kimbox-kept (?:1|2)\n([0-9a-f-]{1,129})\n[!-~]{1,100}\n\d{1,14}\n(\d{1,14})\n(?:(?:lz4|[0-9a-f]{16})\n)?end\n\0*"
)


def used_bytes(read: Read, size_bytes: int) -> int:
    """Returns the number of bytes of the volume that are in use, from its start. 0 if nothing is kept."""
    header = _HEADER.fullmatch(read(0, min(SECTOR_BYTES, size_bytes)))
    return min(DATA_OFFSET_BYTES + int(header[2]), size_bytes) if header else 0


def manifest(read: Read) -> str:
    """Returns the name of the manifest whose root is kept; empty if nothing is kept."""
    header = _HEADER.fullmatch(read(0, SECTOR_BYTES))
    return header[1].decode() if header else ""


def is_kept(name: str, stores: Iterable[str]) -> bool:
    """Whether the LV of that name is for a kept root, by the names of the COW stores of snapshots in its group."""
    return any(name == kept_name(store) for store in stores)
