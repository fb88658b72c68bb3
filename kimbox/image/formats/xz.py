"""Writes xz(1) files on all processors, and reads them within limits. It uses liblzma of the standard library.

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

from kimbox.errors import ImageError

#: First bytes of an xz file.
MAGIC = b"\xfd7zXZ\0"

#: Size of the content of one stream, in bytes: eight times the dictionary of PRESET.
PIECE_BYTES = 8 << 20

#: Preset of liblzma. The result is a seventh smaller than that of gzip's default level. With two processors it is as
#: fast. Higher presets take at least twice the time, and the result is not much smaller.
PRESET = 1

#: Maximum number of pieces that are compressed at the same time. Each needs about 20 MiB of memory.
MAX_WORKERS = 16

#: Memory limit of a reader, in bytes: twice the need of the strongest preset.
MEMORY_BYTES = 128 << 20

#: Number of bytes that are read from a file at a time.
_READ_BYTES = 256 << 10


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


class Reader:
    """Reads the content of an xz file, from its current position on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packed = b""
        self._stream: lzma.LZMADecompressor | None = None

    def read(self, count: int) -> bytes:
        """Returns at most `count` bytes, or no bytes at the end.

        Raises ImageError if the file is damaged, is cut off, or needs more memory than MEMORY_BYTES.
        """
        try:
            while True:
                if self._stream is None and not self._start_stream():
                    return b""
                if piece := self._read_stream(count):
                    return piece
        except lzma.LZMAError as error:
            if "emory" in str(error):
                raise ImageError(
                    f"unpacking the xz file needs more memory than {MEMORY_BYTES >> 20} MiB",
                    code="too-complex",
                    hint="compress it with one of the presets -0 to -9 of xz",
                    fields={"limit": "memory"},
                ) from None
            raise ImageError(
                "the xz file is cut off or damaged", code="archive-damaged", hint="download the file again"
            ) from None

    def _start_stream(self) -> bool:
        """Starts the next stream, after optional padding with zeros. Returns False at the end."""
        while not self._packed:
            self._packed = self._file.read(_READ_BYTES)
            if not self._packed:
                return False
            self._packed = self._packed.lstrip(b"\0")
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)
        return True

    def _read_stream(self, count: int) -> bytes:
        """Returns the next bytes of the stream: none at its end, or if the decompressor needs more input first."""
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
