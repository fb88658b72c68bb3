"""The digest of a stored disk, by which kimbox finds bytes that changed after the image was stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from kimbox.sparse import data_ranges

#: Size of a piece, in bytes. A piece of zeros is left out, so holes and written zeros give the same digest.
PIECE_BYTES = 1 << 20

_ZEROS = bytes(PIECE_BYTES)


def disk_digest(disk: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Returns a hex digest of the file of a disk: the sha256 of its size, and of offset and bytes of each piece.

    It is not the digest that sha256sum(1) prints: a raw disk is mostly holes, and to hash them takes longer than to
    build the image. `on_bytes` is called with the number of bytes that were read. Raises OSError.
    """
    with disk.open("rb") as file:
        handle = file.fileno()
        size_bytes = os.fstat(handle).st_size
        digest = hashlib.sha256(size_bytes.to_bytes(8, "big"))
        done_bytes, at = 0, 0
        for start, end in data_ranges(handle):
            for offset in range(max(at, start - start % PIECE_BYTES), end, PIECE_BYTES):
                piece = os.pread(handle, PIECE_BYTES, offset)
                at = offset + PIECE_BYTES
                if piece != _ZEROS[: len(piece)]:
                    digest.update(offset.to_bytes(8, "big"))
                    digest.update(piece)
                done_bytes += len(piece)
                on_bytes(done_bytes)
    return digest.hexdigest()
