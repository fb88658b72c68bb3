"""Writes zstd(1) and xz(1) files on all processors. `compressed` reads them.

The writer makes one zstd frame, or one xz stream, of each piece of the content. So the number of processors does not
change the bytes. All readers accept several of them in a file. Formats: RFC 8878 (zstd), The .xz File Format 1.2.0.
"""

from __future__ import annotations

import io
import lzma
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import IO, Any

import zstandard

#: Size of the content of one frame or stream, in bytes: twice the window of ZSTD_LEVEL, eight times that of XZ_PRESET.
PIECE_BYTES = 8 << 20

#: Level of zstd. For the disk of a box the result is a seventh smaller than that of gzip's default level, in a quarter
#: of its time. Level 8 saves a tenth of the time and gives a result 6 % larger. Level 12 takes more than twice the time
#: and saves less than 1 %.
ZSTD_LEVEL = 9

#: Preset of liblzma. The result is as small as that of ZSTD_LEVEL, in eight times its time.
XZ_PRESET = 1

#: Maximum number of pieces that are compressed at the same time. Each needs about 70 MiB of memory.
MAX_WORKERS = 16


class Compression(StrEnum):
    """The compression of an archive."""

    ZSTD = "zstd"
    XZ = "xz"
    NONE = "none"


def _compress_zstd(piece: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(piece)


def _compress_xz(piece: bytes) -> bytes:
    return lzma.compress(piece, preset=XZ_PRESET)


#: Compression -> the function that returns a complete frame or stream of a piece.
_FUNCTIONS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.ZSTD: _compress_zstd,
    Compression.XZ: _compress_xz,
}


class Writer(io.RawIOBase):
    """A writable file that compresses its content into `file`. `close` writes the last piece.

    `compression` is not NONE. `on_bytes` gets the number of content bytes that are in `file`.
    """

    def __init__(
        self, file: IO[bytes], compression: Compression, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._file = file
        self._function = _FUNCTIONS[compression]
        self._on_bytes = on_bytes
        self._written_bytes = 0
        self._workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._workers)
        self._results: deque[Future[bytes]] = deque()
        self._piece = bytearray()
        self._content_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._content_bytes

    def write(self, data: Any) -> int:
        size = len(data)
        self._content_bytes += size
        self._piece += data
        while len(self._piece) >= PIECE_BYTES:
            self._compress(bytes(self._piece[:PIECE_BYTES]))
            del self._piece[:PIECE_BYTES]
        return size

    def _compress(self, piece: bytes) -> None:
        """Starts the compression of a piece in another thread."""
        self._results.append(self._pool.submit(self._function, piece))
        self._collect(self._workers + 1)

    def _collect(self, left: int) -> None:
        """Writes results in order until at most `left` are in work."""
        while len(self._results) > left:
            self._file.write(self._results.popleft().result())
            self._written_bytes += PIECE_BYTES
            self._on_bytes(min(self._written_bytes, self._content_bytes))

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self._piece:
                self._compress(bytes(self._piece))
            self._collect(0)
        finally:
            self._pool.shutdown(cancel_futures=True)
            super().close()
