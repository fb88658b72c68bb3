"""Reads the COW store of a device-mapper snapshot, without a kernel. Pure: bytes come from a function.

Format: Linux, drivers/md/dm-snap-persistent.c. Chunk 0 is the header. Then areas follow. An area is one chunk
with a table of exceptions (old chunk, new chunk), and then one chunk of data for each entry of the table. The first
exception with the new chunk 0 ends all tables.
"""

from __future__ import annotations

import struct
from typing import Self

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk import faults, ranges
from kimbox.image.disk.ext4.inodes import Read
from kimbox.image.disk.ranges import Ranges
from kimbox.spec.layout import EXCEPTION_BYTES, SECTOR_BYTES

#: `struct disk_header`: the magic "SnAp", and the version of the format.
MAGIC = 0x70416E53
VERSION = 1


@attrs.frozen
class Store:
    """A COW store: its header and tables, and the places of the changed chunks of the origin."""

    chunk_bytes: int
    #: Byte ranges of the store with the header and the tables of exceptions.
    tables: Ranges
    #: Chunk of the origin -> chunk of the store with its changed content, ascending.
    exceptions: dict[int, int]
    #: False if the kernel invalidated the snapshot: then its content cannot be read.
    is_valid: bool = True

    @classmethod
    def parse(cls, read: Read, size_bytes: int, chunk_bytes: int, origin_bytes: int) -> Self:
        """Reads the store in an LV of `size_bytes`. Raises ImageError if it is damaged.

        `chunk_bytes` is the chunk size in LVM's metadata, `origin_bytes` the size of the origin.
        """
        read = faults.exact(read, faults.SNAPSHOT_STORE)
        magic, valid, version, sectors = struct.unpack_from("<IIII", read(0, 16), 0)
        header = [(0, chunk_bytes)]
        if magic == 0:  # the store is empty: the kernel writes a new header
            return cls(chunk_bytes, header, {})
        if magic != MAGIC or version != VERSION or sectors * SECTOR_BYTES != chunk_bytes:
            raise _damaged("bad-header", "invalid header")
        if not valid:
            return cls(chunk_bytes, header, {}, is_valid=False)
        chunks, old_chunks = size_bytes // chunk_bytes, -(-origin_bytes // chunk_bytes)
        per_area = chunk_bytes // EXCEPTION_BYTES
        exceptions: dict[int, int] = {}
        tables, area = header, 1
        while True:
            if area >= chunks:
                raise _damaged("endless-tables", "the tables of exceptions have no end")
            tables.append((area * chunk_bytes, (area + 1) * chunk_bytes))
            pairs = struct.unpack(f"<{2 * per_area}Q", read(area * chunk_bytes, per_area * EXCEPTION_BYTES))
            for old, new in zip(pairs[::2], pairs[1::2], strict=True):
                if not new:
                    return cls._of(chunk_bytes, tables, exceptions)
                if old >= old_chunks or new >= chunks or old in exceptions or new % (per_area + 1) == 1:
                    raise _damaged("bad-exception", f"invalid exception: chunk {old} of the origin in chunk {new}")
                exceptions[old] = new
            area += per_area + 1

    @classmethod
    def _of(cls, chunk_bytes: int, tables: Ranges, exceptions: dict[int, int]) -> Self:
        if len(set(exceptions.values())) != len(exceptions):
            raise _damaged("shared-chunk", "two exceptions use the same chunk of the store")
        return cls(chunk_bytes, ranges.merged(tables), dict(sorted(exceptions.items())))

    @property
    def changed(self) -> Ranges:
        """Byte ranges of the origin whose changed content is in the store."""
        return ranges.merged((old * self.chunk_bytes, (old + 1) * self.chunk_bytes) for old in self.exceptions)

    def view(self, origin: Read, store: Read) -> Read:
        """Returns a function that reads the snapshot as the guest does. `origin` and `store` read the two LVs."""

        def read(offset: int, size: int) -> bytes:
            pieces, at = [], offset
            while at < offset + size:
                chunk, inside = divmod(at, self.chunk_bytes)
                count = min(self.chunk_bytes - inside, offset + size - at)
                new = self.exceptions.get(chunk)
                pieces.append(origin(at, count) if new is None else store(new * self.chunk_bytes + inside, count))
                at += count
            return b"".join(pieces)

        return read

    def used(self, in_snapshot: Ranges) -> Ranges:
        """Returns the byte ranges of the store that are in use. `in_snapshot`: the bytes in use of the snapshot."""
        unit, used, at = self.chunk_bytes, list(self.tables), 0
        for old, new in self.exceptions.items():
            while at < len(in_snapshot) and in_snapshot[at][1] <= old * unit:
                at += 1
            index = at
            while index < len(in_snapshot) and in_snapshot[index][0] < (old + 1) * unit:
                start, end = max(in_snapshot[index][0], old * unit), min(in_snapshot[index][1], (old + 1) * unit)
                used.append((start + (new - old) * unit, end + (new - old) * unit))
                index += 1
        return ranges.merged(used)


def _damaged(fault: str, reason: str) -> ImageError:
    return faults.damaged(fault, reason, part=faults.SNAPSHOT_STORE)
