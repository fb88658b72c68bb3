"""The store of a device-mapper snapshot, read without a kernel. Pure: bytes come from a function.

Format: Linux, drivers/md/dm-snap-persistent.c. Chunk 0 is the header; then areas, each a chunk of exceptions (old
chunk, new chunk) followed by as many chunks of data as it has room for. One with the new chunk 0 ends them all.
"""

from __future__ import annotations

import struct
from typing import Self

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import ranges
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ranges import Ranges
from kimbox.spec.layout import EXCEPTION_BYTES, SECTOR_BYTES

#: `struct disk_header`: the magic "SnAp", and the version of the format.
MAGIC = 0x70416E53
VERSION = 1


@attrs.frozen
class Store:
    """A COW store: its own tables, and where the changed chunks of the origin lie in it."""

    chunk_bytes: int
    #: Header and tables, in bytes of the store.
    tables: Ranges
    #: Chunk of the origin -> chunk of the store, ascending.
    moved: dict[int, int]
    #: False if the kernel has invalidated the snapshot: it cannot be read any more.
    holds: bool = True

    @classmethod
    def parse(cls, read: Read, size_bytes: int, chunk_bytes: int, origin_bytes: int) -> Self:
        """Reads the store in an LV of that size; `chunk_bytes` is from LVM. Raises ImageError if it is damaged."""
        magic, valid, version, sectors = struct.unpack_from("<IIII", read(0, 16), 0)
        header = [(0, chunk_bytes)]
        if magic == 0:  # never used, or wiped: the kernel writes a new header
            return cls(chunk_bytes, header, {})
        if magic != MAGIC or version != VERSION or sectors * SECTOR_BYTES != chunk_bytes:
            raise ImageError("the store of its snapshot is damaged: a header that cannot be")
        if not valid:
            return cls(chunk_bytes, header, {}, holds=False)
        chunks, old_chunks = size_bytes // chunk_bytes, -(-origin_bytes // chunk_bytes)
        per_area = chunk_bytes // EXCEPTION_BYTES
        moved: dict[int, int] = {}
        tables, area = header, 1
        while True:
            if area >= chunks:
                raise ImageError("the store of its snapshot is damaged: its tables have no end")
            tables.append((area * chunk_bytes, (area + 1) * chunk_bytes))
            pairs = struct.unpack(f"<{2 * per_area}Q", read(area * chunk_bytes, per_area * EXCEPTION_BYTES))
            for old, new in zip(pairs[::2], pairs[1::2], strict=True):
                if not new:
                    return cls._of(chunk_bytes, tables, moved)
                if old >= old_chunks or new >= chunks or old in moved or new % (per_area + 1) == 1:
                    raise ImageError("the store of its snapshot is damaged: a chunk that cannot be")
                moved[old] = new
            area += per_area + 1

    @classmethod
    def _of(cls, chunk_bytes: int, tables: Ranges, moved: dict[int, int]) -> Self:
        if len(set(moved.values())) != len(moved):
            raise ImageError("the store of its snapshot is damaged: a chunk is there twice")
        return cls(chunk_bytes, ranges.merged(tables), dict(sorted(moved.items())))

    @property
    def changed(self) -> Ranges:
        """Byte ranges of the origin whose content lies in the store."""
        return ranges.merged((old * self.chunk_bytes, (old + 1) * self.chunk_bytes) for old in self.moved)

    def view(self, origin: Read, store: Read) -> Read:
        """The snapshot as the guest sees it."""

        def read(offset: int, size: int) -> bytes:
            pieces, at = [], offset
            while at < offset + size:
                chunk, inside = divmod(at, self.chunk_bytes)
                count = min(self.chunk_bytes - inside, offset + size - at)
                new = self.moved.get(chunk)
                pieces.append(origin(at, count) if new is None else store(new * self.chunk_bytes + inside, count))
                at += count
            return b"".join(pieces)

        return read

    def used(self, seen: Ranges) -> Ranges:
        """Byte ranges of the store that are in use; `seen` are those of the snapshot."""
        unit, found, at = self.chunk_bytes, list(self.tables), 0
        for old, new in self.moved.items():
            while at < len(seen) and seen[at][1] <= old * unit:
                at += 1
            index = at
            while index < len(seen) and seen[index][0] < (old + 1) * unit:
                start, end = max(seen[index][0], old * unit), min(seen[index][1], (old + 1) * unit)
                found.append((start + (new - old) * unit, end + (new - old) * unit))
                index += 1
        return ranges.merged(found)
