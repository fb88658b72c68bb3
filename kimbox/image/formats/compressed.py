"""Reads files that are compressed with gzip, bzip2, xz or zstd, within limits on memory and on the unpacked size.

The compression is recognized by the first bytes, as bsdtar(1) does, and never by the name. Formats: RFC 1952 (gzip),
bzip2(1), The .xz File Format 1.2.0, RFC 8878 (zstd).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import zstandard

from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES

#: Memory limit of a reader for its dictionary or window, in bytes: that of `xz -9` and of `zstd --ultra -22`, twice.
MEMORY_BYTES = 128 << 20

#: Maximum ratio of unpacked and packed size, for files with more than RATIO_FROM_BYTES of unpacked data. It rejects
#: decompression bombs. The disks of real boxes stay below it.
RATIO_FROM_BYTES = 256 << 20
MAX_RATIO = 200

#: Number of bytes that are read from a file at a time.
_READ_BYTES = 64 << 10

#: Number of bytes that zstd gets at a time. Its library has no limit on the output: four bytes can be 128 KiB.
_ZSTD_STEP_BYTES = 1 << 10

#: Hint for a file that is cut off or damaged.
DOWNLOAD = "download the file again"


class Decompressor(Protocol):
    """An incremental decompressor of the standard library, for one stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zstd:
    """A decompressor for one zstd frame, with the interface of those of the standard library."""

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES).decompressobj()
        self._packed = memoryview(b"")
        self._unpacked = memoryview(b"")

    @property
    def eof(self) -> bool:
        return self._frame.eof and not self._unpacked

    @property
    def needs_input(self) -> bool:
        return not self._unpacked and not self._packed

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data) + bytes(self._packed)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if data:
            self._packed = memoryview(data)
        while not self._unpacked and self._packed and not self._frame.eof:
            piece, self._packed = self._packed[:_ZSTD_STEP_BYTES], self._packed[_ZSTD_STEP_BYTES:]
            self._unpacked = memoryview(self._frame.decompress(bytes(piece)))
        end = len(self._unpacked) if max_length < 0 else max_length
        result, self._unpacked = bytes(self._unpacked[:end]), self._unpacked[end:]
        return result


def _xz() -> Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)


#: Name of a compression -> first bytes of a file, and a function that makes a decompressor for one stream of it.
_STREAMS: dict[str, tuple[bytes, Callable[[], Decompressor]]] = {
    "bzip2": (b"BZh", bz2.BZ2Decompressor),
    "xz": (b"\xfd7zXZ\0", _xz),
    "zstd": (b"\x28\xb5\x2f\xfd", _Zstd),
}
_GZIP = b"\x1f\x8b"

#: First bytes of a skippable frame of zstd; the low four bits of the first byte are free. pzstd(1) starts with one.
_SKIPPABLE = bytes.fromhex("502a4d18")


class Content(Protocol):
    """The unpacked bytes of a file. `read` returns at most `count` bytes, and no bytes at the end."""

    def read(self, count: int, /) -> bytes: ...


def compression_of(head: bytes) -> str | None:
    """The name of the compression of a file that begins with `head`, or None if it is not compressed."""
    if head.startswith(_GZIP):
        return "gzip"
    if len(head) >= 4 and bytes([head[0] & 0xF0]) + head[1:4] == _SKIPPABLE:
        return "zstd"
    return next((name for name, (magic, _) in _STREAMS.items() if head.startswith(magic)), None)


def opened(file: IO[bytes], name: str | None = None) -> Content:
    """A reader of the unpacked bytes of a file, which is at its start. `name`: its compression; None to recognize it.

    The reader raises ImageError: `archive-damaged` if the file is damaged or cut off, `too-complex` if it needs more
    memory than MEMORY_BYTES.
    """
    if name is None:
        name = compression_of(file.read(16))
        file.seek(0)
    if name is None:
        return file
    return _Gzip(file) if name == "gzip" else _Streams(file, name, _STREAMS[name][1])


def check_ratio(unpacked_bytes: int, packed_bytes: int) -> None:
    """Raises ImageError (`file-too-large`) if data unpacks to more than MAX_RATIO times its size."""
    if unpacked_bytes > RATIO_FROM_BYTES and unpacked_bytes > MAX_RATIO * packed_bytes:
        raise ImageError(
            f"the file is a decompression bomb: it unpacks to more than {MAX_RATIO} times its size",
            code="file-too-large",
            hint="if you trust the file, unpack it yourself and add the result",
            fields={"limit": "ratio"},
        )


def pieces(file: IO[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Yields the unpacked bytes of a file, which is at its start.

    Raises ImageError: the errors of `opened` and `check_ratio`, and `file-too-large` above `limit_bytes`.
    """
    content, done_bytes = opened(file), 0
    while piece := content.read(CHUNK_BYTES):
        done_bytes += len(piece)
        check_ratio(done_bytes, file.tell())
        if done_bytes > limit_bytes:
            raise ImageError(
                f"the file unpacks to more than {limit_bytes} bytes",
                code="file-too-large",
                fields={"limit": "size"},
            )
        yield piece


def _damaged(name: str) -> ImageError:
    return ImageError(
        f"the file is cut off or damaged (it is compressed with {name})", code="archive-damaged", hint=DOWNLOAD
    )


class _Gzip:
    """Reads the content of a gzip file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._content = gzip.GzipFile(fileobj=file)

    def read(self, count: int, /) -> bytes:
        try:
            return self._content.read(count)
        except (gzip.BadGzipFile, zlib.error, EOFError):
            raise _damaged("gzip") from None


class _Streams:
    """Reads the content of a file of several streams: bzip2, xz or zstd."""

    def __init__(self, file: IO[bytes], name: str, start: Callable[[], Decompressor]) -> None:
        self._file = file
        self._name = name
        self._start = start
        self._packed = b""
        self._stream: Decompressor | None = None

    def read(self, count: int, /) -> bytes:
        try:
            while True:
                if self._stream is None and not self._start_stream():
                    return b""
                if piece := self._read_stream(count):
                    return piece
        except (lzma.LZMAError, zstandard.ZstdError, OSError, ValueError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # bz2 raises an OSError without an errno for damaged data
            if "emory" in str(error):
                raise ImageError(
                    f"unpacking the {self._name} file needs more memory than {MEMORY_BYTES >> 20} MiB",
                    code="too-complex",
                    hint="compress it again with a smaller window: `xz -9` or `zstd -19`, without `--long`",
                    fields={"limit": "memory"},
                ) from None
            raise _damaged(self._name) from None

    def _start_stream(self) -> bool:
        """Starts the next stream, after optional padding with zeros. Returns False at the end."""
        while not self._packed:
            self._packed = self._file.read(_READ_BYTES)
            if not self._packed:
                return False
            self._packed = self._packed.lstrip(b"\0")
        self._stream = self._start()
        return True

    def _read_stream(self, count: int) -> bytes:
        """Returns the next bytes of the stream: none at its end, or if the decompressor needs more input first."""
        stream = self._stream
        assert stream is not None  # noqa: S101 - for the type checker
        if stream.needs_input and not self._packed:
            self._packed = self._file.read(_READ_BYTES)
            if not self._packed:
                raise EOFError
        piece, self._packed = stream.decompress(self._packed, count), b""
        if stream.eof:
            self._packed, self._stream = stream.unused_data.lstrip(b"\0"), None
        return piece
