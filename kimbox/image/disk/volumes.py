"""The file systems, swap and snapshot of a raw disk of kimbox's layout, each as bytes of its own.

An LV may have been extended and lie in several pieces: whoever reads one need not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import inuse
from kimbox.image.disk.ext4 import inodes, usage
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.lvm import reader
from kimbox.image.disk.lvm.reader import Snapshot
from kimbox.image.disk.sectors import SWAP_PAGE_BYTES
from kimbox.image.sanitize import restore

#: How the label of the file system begins whose content outlives a new root.
PERSISTENT_LABEL = "kimbox-persist"

BOOT, ROOT, PERSISTENT = "/boot", "", "/persistent"

Write = Callable[[int, bytes], None]


@attrs.frozen
class Volume:
    """A partition or an LV. `pieces`: offset on the disk and size, in order."""

    name: str
    pieces: tuple[tuple[int, int], ...]
    read: inodes.Read

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.pieces)

    def on_disk(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Where on the disk a piece of it lies: offsets and sizes."""
        for start, length in self.pieces:
            if offset < length and size > 0:
                count = min(length - offset, size)
                yield start + offset, count
                size -= count
                offset = 0
            else:
                offset = max(offset - length, 0)


@attrs.frozen
class Volumes:
    """All of a disk. `systems`: file systems by where the guest mounts them; others by `volume NAME:`."""

    systems: dict[str, FileSystem]
    places: dict[str, Volume]
    swaps: tuple[Volume, ...]
    store: Volume
    snapshot: Snapshot
    #: What is neither.
    unknown: tuple[Volume, ...]


@contextmanager
def opened(disk: Path) -> Iterator[Volumes]:
    """The volumes of a raw disk that nobody writes to meanwhile. Raises ImageError if it has another layout."""
    at = restore.places(disk)
    with disk.open("rb") as file:
        yield _find(file.fileno(), at)


def _find(handle: int, at: restore.Places) -> Volumes:
    def read_from(base: int) -> inodes.Read:
        return lambda offset, size: os.pread(handle, size, base + offset)

    size = os.fstat(handle).st_size
    _, (pv, pv_end) = sorted(inuse.partitions(read_from(0), size))
    group = reader.read_group(read_from(pv), pv_end - pv)
    if len(group.snapshots) != 1:
        raise ImageError("it has more snapshots than the one of root")
    (snapshot,) = group.snapshots
    boot = Volume(BOOT, (at.boot,), read_from(at.boot[0]))
    found = [(BOOT, boot)]
    swaps, unknown, store = [], [], None
    for name, lv in group.volumes.items():
        pieces = tuple((pv + segment.place, segment.size_bytes) for segment in lv.segments)
        volume = Volume(name, pieces, inuse.through(read_from(pv), lv))
        if name == snapshot.store:
            store = volume
        elif name == snapshot.origin:
            found.append((ROOT, volume))
        elif volume.read(SWAP_PAGE_BYTES - 10, 10) == inuse.SWAP_MAGIC:
            swaps.append(volume)
        elif usage.is_ext4(volume.read):
            found.append((f"volume {name}:", volume))
        else:
            unknown.append(volume)
    if store is None:
        raise ImageError("its snapshot has no store")
    systems, places = {}, {}
    for name, volume in found:
        try:
            system = inodes.open_at(inodes.cached(volume.read))
        except ImageError as error:
            raise ImageError(f"{volume.name}: {error.message}", hint=error.hint) from None
        is_persistent = (
            system.label.startswith(PERSISTENT_LABEL) and PERSISTENT not in systems and name not in (BOOT, ROOT)
        )
        where = PERSISTENT if is_persistent else name
        systems[where], places[where] = system, volume
    return Volumes(systems, places, tuple(swaps), store, snapshot, tuple(unknown))
