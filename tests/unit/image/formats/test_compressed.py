"""Compressed files: read in pieces of a limited size, refused if damaged, and within a limit on memory."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma

import pytest
import zstandard
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.formats import compressed

CONTENT = hashlib.shake_128().digest(70_000) + bytes(200_000) + b"the end"

COMPRESSIONS = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstandard.ZstdCompressor().compress
}  # fmt: skip

#: A frame of zstd without content, which pzstd(1) writes first.
SKIPPABLE = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"size"


def unpacked(data: bytes, count: int = 1 << 20, name: str | None = None) -> bytes:
    """The content that the reader returns, in reads of `count` bytes."""
    reader, pieces = compressed.opened(io.BytesIO(data), name), []
    while piece := reader.read(count):
        assert len(piece) <= count
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("count", [1000, 1 << 20])
def test_a_file_of_several_streams(name: str, count: int) -> None:
    """They are read as one, with padding of zeros between and after them."""
    data = COMPRESSIONS[name](CONTENT) + bytes(8) + COMPRESSIONS[name](b"") + COMPRESSIONS[name](b"more") + bytes(512)
    assert name == compressed.compression_of(data[:16])
    assert CONTENT + b"more" == unpacked(data, count)


def test_skippable_frames() -> None:
    """They have no content, and may be the first of a file."""
    data = SKIPPABLE + zstandard.ZstdCompressor().compress(CONTENT) + SKIPPABLE
    assert ("zstd", CONTENT) == (compressed.compression_of(data[:16]), unpacked(data))


def test_a_file_that_is_not_compressed() -> None:
    """It is read as it is."""
    assert (None, CONTENT) == (compressed.compression_of(CONTENT[:16]), unpacked(CONTENT))
    assert compressed.compression_of(b"\x28\xb5") is None


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_damage(name: str) -> None:
    """A file is refused if it is cut off anywhere, or if it has rubbish at its end."""
    data = COMPRESSIONS[name](CONTENT[:1000])
    wrongs = [data[:at] for at in range(4, len(data), 13)] + [data[:-1], data + b"rubbish"]
    for wrong in wrongs:
        with refused(ImageError, "archive-damaged") as caught:
            unpacked(wrong, name=name)
        assert name in caught.value.message


def test_a_window_that_is_too_large() -> None:
    """kimbox does not allocate a window of 2 GiB."""
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT))
    assert 0 == frame[4] & 0x20  # the frame has a window descriptor, which is the next byte
    frame[5] = (31 - 10) << 3
    with refused(ImageError, "too-complex", limit="memory"):
        unpacked(bytes(frame))


def test_memory_of_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decompressor of zstd, whose library has no limit, gets little input at a time."""
    largest = 0
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    original = compressed._Zstd.decompress

    def decompress(self: compressed._Zstd, data: bytes, max_length: int = -1) -> bytes:
        nonlocal largest
        piece = original(self, data, max_length)
        largest = max(largest, len(self._unpacked))
        return piece

    monkeypatch.setattr(compressed._Zstd, "decompress", decompress)
    assert 100 << 20 == sum(map(len, compressed.pieces(io.BytesIO(bomb), 1 << 40)))
    assert 0 < largest <= 32 << 20
