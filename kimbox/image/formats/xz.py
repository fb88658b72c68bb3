"""xz(1) archives with the standard library's liblzma: written by all processors, read within bounds.

What is written is a row of streams, one for each piece of the content, so that the same content gives the same bytes on
any number of processors. Every reader of xz takes such rows. Format: The .xz File Format 1.2.0, of the Tukaani project.
"""

from __future__ import annotations

import io
import lzma
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from kimbox.errors import ImageError

MAGIC = b"\xfd7zXZ\0"

#: The content of one stream: many times what liblzma looks back in at this preset.
PIECE_BYTES = 8 << 20

#: The quickest preset but one: a seventh smaller than gzip at its usual level, and as quick where there are two
#: processors. The next ones win little, and take twice the time and more.
PRESET = 1

#: No more pieces are worked at together; each takes some twenty MiB.
MAX_WORKERS = 16

#: What a reader may take: twice what the strongest preset needs.
MEMORY_BYTES = 128 << 20

#: So much of a file is read at a time.
_READ_BYTES = 256 << 10


class Writer(io.RawIOBase):
    """A file that compresses into `file` what is written to it; what is left at the end, `close` writes.

    `on_bytes` is told how much of the content is in `file`.
    """

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self._written = 0
        self._workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._workers)
        self._streams: deque[Future[bytes]] = deque()
        self._piece = bytearray()
        self._taken = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._taken

    def write(self, data: Any) -> int:
        size = len(data)
        self._taken += size
        self._piece += data
        while len(self._piece) >= PIECE_BYTES:
            self._hand_out(bytes(self._piece[:PIECE_BYTES]))
            del self._piece[:PIECE_BYTES]
        return size

    def _hand_out(self, piece: bytes) -> None:
        self._streams.append(self._pool.submit(lzma.compress, piece, preset=PRESET))
        self._collect(self._workers + 1)

    def _collect(self, left: int) -> None:
        """Writes streams in their order until no more than so many are left."""
        while len(self._streams) > left:
            self._file.write(self._streams.popleft().result())
            self._written += PIECE_BYTES
            self._on_bytes(min(self._written, self._taken))

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self._piece:
                self._hand_out(bytes(self._piece))
            self._collect(0)
        finally:
            self._pool.shutdown(cancel_futures=True)
            super().close()


class Reader:
    """The content of an xz file, from its position on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packed = b""
        self._stream: lzma.LZMADecompressor | None = None

    def read(self, count: int) -> bytes:
        """At most so many bytes; nothing at the end.

        Raises ImageError for a file that is damaged, cut off, or made to take more memory than a reader may.
        """
        try:
            while True:
                if self._stream is None and not self._next():
                    return b""
                if piece := self._some(count):
                    return piece
        except lzma.LZMAError as error:
            if "emory" in str(error):
                raise ImageError(
                    "this xz archive takes too much memory to unpack", hint="compress it with a preset of xz, -0 to -9"
                ) from None
            raise ImageError("this xz archive is cut off or damaged", hint="get it again") from None

    def _next(self) -> bool:
        """Begins with the next stream; between two there may be zeros. False at the end."""
        while not self._packed:
            self._packed = self._file.read(_READ_BYTES)
            if not self._packed:
                return False
            self._packed = self._packed.lstrip(b"\0")
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)
        return True

    def _some(self, count: int) -> bytes:
        """What the current stream gives next: nothing at its end, and where it takes more before it gives any."""
        stream = self._stream
        assert stream is not None  # noqa: S101 - for the type checker
        if stream.needs_input and not self._packed:
            self._packed = self._file.read(_READ_BYTES)
            if not self._packed:
                raise lzma.LZMAError("cut off")
        piece, self._packed = stream.decompress(self._packed, count), b""
        if stream.eof:
            self._packed, self._stream = stream.unused_data.lstrip(b"\0"), None
        return piece
