"""Writes xz(1) files on all processors, with liblzma of the standard library. `compressed` reads them.

The writer makes one xz stream of each piece of the content. So the number of processors does not change the bytes. All
readers of xz accept several streams in a file. Format: The .xz File Format 1.2.0, of the Tukaani project.
"""

from __future__ import annotations

import io
import lzma
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

#: Size of the content of one stream, in bytes: eight times the dictionary of PRESET.
PIECE_BYTES = 8 << 20

#: Preset of liblzma. The result is a seventh smaller than that of gzip's default level. With two processors it is as
#: fast. Higher presets take at least twice the time, and the result is not much smaller.
PRESET = 1

#: Maximum number of pieces that are compressed at the same time. Each needs about 20 MiB of memory.
MAX_WORKERS = 16


class Writer(io.RawIOBase):
    """A writable file that compresses its content into `file`. `close` writes the last piece.

    `on_bytes` gets the number of content bytes that are in `file`.
    """

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self._written_bytes = 0
        self._workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._workers)
        self._streams: deque[Future[bytes]] = deque()
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
        self._streams.append(self._pool.submit(lzma.compress, piece, preset=PRESET))
        self._collect(self._workers + 1)

    def _collect(self, left: int) -> None:
        """Writes streams in order until at most `left` are in work."""
        while len(self._streams) > left:
            self._file.write(self._streams.popleft().result())
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
